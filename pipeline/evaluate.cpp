#include "pipeline/evaluate.h"

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"
#include "kernels/linear.h"
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
    const TensorArray table = source.load_tensor(architecture.embedding);
    embed_tokens(architecture, tokens.ids, table, activations, stream);
  }
  const DecoderTables tables = make_tables(architecture, tokens.seqlen, stream);
  for (std::int64_t index = 0; index < architecture.layers; ++index) {
    const Layer layer = source.load_layer(index);
    forward_layer(architecture, tables, layer, activations, stream);
    comm.wait(stream);
    if (progress) progress(index + 1, architecture.layers);
  }

  std::vector<Buffer> memory;
  const Norm final_norm = source.load_norm(architecture.final_norm, memory);
  const TensorArray head = source.load_compute_tensor(
      architecture.tied_embeddings ? architecture.embedding : architecture.lm_head + ".weight");
  TensorArray head_bias;
  if (architecture.lm_head_bias)
    head_bias = source.load_compute_tensor(architecture.lm_head + ".bias");
  Array<float> logits(logit_rows, architecture.vocab, stream);
  Array<float> nll(1, logit_rows, stream);
  Array<std::int32_t> target_on_device(1, logit_rows, stream);

  std::vector<double> sums;  // one for each chunk of rows, in order
  const auto add_losses = [&](std::size_t local, Block& block) {
    const std::int64_t first_sample = activations.first_sample(local);
    const std::int64_t block_tokens = block.hidden.rows;
    const std::vector<std::int32_t> target =
        next_tokens(tokens.ids.data() + first_sample * tokens.seqlen, block_tokens, tokens.seqlen);
    const Tensor normed(activations.scratch.view.data, block.hidden.dtype, block_tokens,
                        architecture.hidden);
    apply_norm(architecture, final_norm, block.hidden, normed, stream);
    std::vector<float> block_logits;
    for (std::int64_t begin = 0; begin < block_tokens; begin += logit_rows) {
      const std::int64_t rows = std::min(logit_rows, block_tokens - begin);
      const Matrix<float> chunk = logits.view.row_range(0, rows);
      linear(normed.row_range(begin, rows), head, head_bias, chunk, stream);
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
