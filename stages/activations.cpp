#include "stages/activations.h"

#include <algorithm>

#include "kernels/activation.h"
#include "launch/share.h"

namespace qpipe {

Blocking cut_samples(std::int64_t samples, std::int64_t seqlen, std::int64_t micro_batch) {
  return {samples, seqlen, std::clamp<std::int64_t>(micro_batch / seqlen, 1, std::max<std::int64_t>(samples, 1))};
}

namespace {
// Bytes of a block's memory.
std::int64_t padded_bytes(const Blocking& blocking, std::int64_t width, const Stream& stream) {
  return (blocking.block_samples * blocking.seqlen * width * static_cast<std::int64_t>(size_of(stream.compute_dtype())) + 255) / 256 * 256;
}
}  // namespace

HiddenBlocks::HiddenBlocks(const Blocking& blocking, RowRange owned, std::int64_t width, Stream& stream)
    : memory(static_cast<std::size_t>(padded_bytes(blocking, width, stream) * owned.count), stream) {
  for (std::int64_t local = 0; local < owned.count; ++local)
    blocks.emplace_back(static_cast<unsigned char*>(memory.data()) + local * padded_bytes(blocking, width, stream), stream.compute_dtype(),
                        blocking.block_size(owned.begin + local) * blocking.seqlen, width);
}

void HiddenBlocks::read(std::size_t local, Tensor to, Stream& stream) const {
  copy_on_device(to.data, blocks[local].data, static_cast<std::size_t>(to.bytes()), stream);
}

void HiddenBlocks::write(std::size_t local, ConstTensor from, Stream& stream) {
  copy_on_device(blocks[local].data, from.data, static_cast<std::size_t>(blocks[local].bytes()), stream);
}

void Activations::swap_hidden(HiddenBlocks& other) {
  std::swap(hidden, other);
  for (std::size_t local = 0; local < blocks.size(); ++local) blocks[local].hidden = hidden.blocks[local];
}

Activations make_activations(const Architecture& architecture, const Blocking& blocking, int rank, int ranks, Stream& stream) {
  Activations result;
  result.blocking = blocking;
  result.owned = contiguous_share(blocking.blocks(), rank, ranks);
  result.hidden_width = architecture.hidden;
  result.hidden = HiddenBlocks(blocking, result.owned, architecture.hidden, stream);
  const std::int64_t input_bytes = padded_bytes(blocking, widest_input(architecture), stream);
  result.input_memory = Buffer(static_cast<std::size_t>(input_bytes * result.owned.count), stream);
  result.scratch = TensorArray(stream.compute_dtype(), blocking.block_samples * blocking.seqlen, scratch_width(architecture), stream);
  for (std::int64_t local = 0; local < result.owned.count; ++local) {
    const Tensor hidden = result.hidden.blocks[static_cast<std::size_t>(local)];
    void* input = static_cast<unsigned char*>(result.input_memory.data()) + local * input_bytes;
    result.blocks.push_back({hidden, {input, hidden.dtype, hidden.rows, architecture.hidden}});
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
