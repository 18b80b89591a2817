#include "stages/activations.h"

#include <algorithm>

#include "kernels/activation.h"
#include "launch/share.h"

namespace qpipe {

Blocking cut_samples(std::int64_t samples, std::int64_t seqlen, std::int64_t micro_batch) {
  return {samples, seqlen, std::clamp<std::int64_t>(micro_batch / seqlen, 1, std::max<std::int64_t>(samples, 1))};
}

Activations make_activations(const Architecture& architecture, const Blocking& blocking, int rank, int ranks, Stream& stream) {
  Activations result;
  result.blocking = blocking;
  result.owned = contiguous_share(blocking.blocks(), rank, ranks);
  const DType dtype = stream.compute_dtype();
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t block_tokens = blocking.block_samples * blocking.seqlen;
  const auto padded = [&](std::int64_t width) { return (block_tokens * width * element + 255) / 256 * 256; };
  const std::int64_t hidden_bytes = padded(architecture.hidden);
  const std::int64_t input_bytes = padded(widest_input(architecture));
  result.hidden_memory = Buffer(static_cast<std::size_t>(hidden_bytes * result.owned.count), stream);
  result.input_memory = Buffer(static_cast<std::size_t>(input_bytes * result.owned.count), stream);
  result.scratch = TensorArray(dtype, block_tokens, scratch_width(architecture), stream);
  for (std::int64_t local = 0; local < result.owned.count; ++local) {
    const std::int64_t tokens = blocking.block_size(result.owned.begin + local) * blocking.seqlen;
    Block block;
    block.hidden = {static_cast<unsigned char*>(result.hidden_memory.data()) + local * hidden_bytes, dtype, tokens, architecture.hidden};
    block.input = {static_cast<unsigned char*>(result.input_memory.data()) + local * input_bytes, dtype, tokens, architecture.hidden};
    result.blocks.push_back(block);
  }
  return result;
}

void embed_tokens(const Architecture& architecture, const std::vector<std::int32_t>& ids, ConstTensor table, Activations& activations,
                  Stream& stream) {
  const Blocking& blocking = activations.blocking;
  for (std::size_t local = 0; local < activations.blocks.size(); ++local) {
    const std::int64_t tokens = activations.block_tokens(local);
    const std::int64_t first = blocking.block_begin(activations.owned.begin + static_cast<std::int64_t>(local)) * blocking.seqlen;
    Array<std::int32_t> block_ids(1, tokens, stream);
    copy_to_device(block_ids.view.data, ids.data() + first, static_cast<std::size_t>(tokens) * sizeof(std::int32_t), stream);
    embed(block_ids, table, architecture.embedding_multiplier, activations.blocks[local].hidden, stream);
  }
}

}  // namespace qpipe
