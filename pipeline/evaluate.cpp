#include "pipeline/evaluate.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"
#include "pipeline/files/error.h"
#include "pipeline/layers/layer_source.h"
#include "pipeline/model/model.h"
#include "stages/activations.h"

namespace qpipe {

namespace {

// Rows of the logits matrix computed at once.
constexpr std::int64_t logit_rows = 512;

// target[t] = the token after t in the same window, −1 at its end.
std::vector<std::int32_t> next_tokens(const std::int32_t* ids, std::int64_t tokens,
                                      std::int64_t seqlen) {
  std::vector<std::int32_t> target(static_cast<std::size_t>(tokens), -1);
  for (std::int64_t t = 0; t < tokens; ++t)
    if (t % seqlen != seqlen - 1) target[static_cast<std::size_t>(t)] = ids[t + 1];
  return target;
}

}  // namespace

Perplexity evaluate(const Checkpoint& checkpoint, const Architecture& architecture,
                    const Tokens& tokens, std::int64_t micro_batch, const Places& places,
                    Comm& comm, Stream& stream, const LogitsSink& sink,
                    const std::function<void(std::int64_t, std::int64_t)>& progress) {
  if (tokens.seqlen < 2)
    throw UserError(ExitCode::data,
                    tokens.source + ": perplexity needs windows of at least 2 tokens");
  check_sequence_length(architecture, tokens.seqlen);
  LayerSource source(checkpoint, architecture, comm, stream);
  const Blocking blocking = cut_samples(tokens.samples, tokens.seqlen, micro_batch);
  Activations activations = make_activations(architecture, blocking, comm.rank(), comm.size(),
                                             without_inputs(places), stream);
  {
    const EmbeddingWeights embedding = source.load_embedding();
    embed_tokens(architecture, embedding, tokens.ids, activations, stream);
  }
  const DecoderTables tables = make_tables(architecture, tokens.seqlen, stream);
  for (std::int64_t index = 0; index < architecture.layers; ++index) {
    const Layer layer = source.load_layer(index);
    forward_layer(layer, tables, activations, stream);
    comm.wait(stream);
    if (progress) progress(index + 1, architecture.layers);
  }

  const HeadWeights head = source.load_head();
  Array<float> logits(logit_rows, architecture.vocab, stream);
  Array<float> nll(1, logit_rows, stream);
  Array<std::int32_t> target_on_device(1, logit_rows, stream);

  TensorArray projected;  // what the head reads, where it is not the stream's norm itself
  if (architecture.head.projection)
    projected = TensorArray(stream.compute_dtype(), blocking.block_tokens(),
                            architecture.embedding.width, stream);
  std::vector<double> sums;  // one for each chunk of rows, in order
  const auto add_losses = [&](std::size_t local, Block& block) {
    const std::int64_t first_sample = activations.first_sample(local);
    const std::int64_t block_tokens = block.hidden.rows;
    const std::vector<std::int32_t> target =
        next_tokens(tokens.ids.data() + first_sample * tokens.seqlen, block_tokens, tokens.seqlen);
    const std::int64_t width = architecture.embedding.width;
    const Tensor scratch = activations.scratch;
    const Tensor x(projected.empty() ? scratch.data : projected.view.data, scratch.dtype,
                   block_tokens, width);
    head_input(architecture, head, block.hidden.col_range(0, architecture.hidden), scratch, x,
               stream);
    std::vector<float> block_logits;
    for (std::int64_t begin = 0; begin < block_tokens; begin += logit_rows) {
      const std::int64_t rows = std::min(logit_rows, block_tokens - begin);
      const Matrix<float> chunk = logits.view.row_range(0, rows);
      head_logits(architecture.head, head, x.row_range(begin, rows), chunk, stream);
      copy_to_device(target_on_device.view.data, target.data() + begin,
                     static_cast<std::size_t>(rows) * sizeof(std::int32_t), stream);
      const Matrix<float> chunk_nll = nll.view.col_range(0, rows);
      cross_entropy(chunk, target_on_device.view.col_range(0, rows), chunk_nll, stream);
      std::vector<float> values(static_cast<std::size_t>(rows));
      copy_to_host(values.data(), chunk_nll.data, values.size() * sizeof(float), stream);
      double sum = 0.0;
      for (const float value : values) sum += value;
      sums.push_back(sum);
      if (sink) {
        const std::size_t old = block_logits.size();
        block_logits.resize(old + static_cast<std::size_t>(chunk.size()));
        copy_to_host(block_logits.data() + old, chunk.data,
                     static_cast<std::size_t>(chunk.size()) * sizeof(float), stream);
      }
    }
    if (sink) sink(first_sample, block_logits);
  };
  visit(activations, Access::read, Access::none, add_losses, stream);
  double total = 0.0;
  for (const double sum : comm.all_gather(sums)) total += sum;  // rank order is sample order
  Perplexity result;
  result.tokens = tokens.samples * (tokens.seqlen - 1);
  result.value = std::exp(total / static_cast<double>(result.tokens));
  return result;
}

}  // namespace qpipe
