// The calibration set's activations on one rank: the residual stream and the current step's input of every block of samples it owns.
#pragma once

#include <vector>

#include "launch/comm.h"
#include "stages/layer.h"

namespace qpipe {

// How the samples are cut: fixed blocks, whatever the number of ranks. Only the owners change.
struct Blocking {
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::int64_t block_samples = 1;

  std::int64_t blocks() const { return (samples + block_samples - 1) / block_samples; }
  std::int64_t block_begin(std::int64_t block) const { return block * block_samples; }
  std::int64_t block_size(std::int64_t block) const { return std::min(block_samples, samples - block_begin(block)); }
  std::int64_t tokens() const { return samples * seqlen; }
};

// Blocks of at most micro_batch tokens, at least one sample.
Blocking cut_samples(std::int64_t samples, std::int64_t seqlen, std::int64_t micro_batch);

// The residual stream of a rank's blocks, every block at a 256-byte boundary so that libraries choose the same algorithms for it on every
// rank.
struct HiddenBlocks {
  Buffer memory;
  std::vector<Tensor> blocks;

  HiddenBlocks() = default;
  HiddenBlocks(const Blocking& blocking, RowRange owned, std::int64_t width, Stream& stream);
  void read(std::size_t local, Tensor to, Stream& stream) const;
  void write(std::size_t local, ConstTensor from, Stream& stream);
};

struct Activations {
  Blocking blocking;
  RowRange owned;             // blocks of this rank
  std::vector<Block> blocks;  // one for each owned block; its hidden is hidden.blocks'
  std::int64_t hidden_width = 0;
  HiddenBlocks hidden;
  Buffer input_memory;
  TensorArray scratch;  // [tokens of one block, scratch_width]

  std::int64_t block_tokens(std::size_t local) const { return blocks[local].hidden.rows; }
  // The residual stream becomes `other`, of the same blocks, and `other` what it was.
  void swap_hidden(HiddenBlocks& other);
};

// Memory for the owned blocks.
Activations make_activations(const Architecture& architecture, const Blocking& blocking, int rank, int ranks, Stream& stream);

// hidden = embedding of the tokens. ids: row-major [samples, seqlen] on the host, all samples; table [vocab, hidden] on the device.
void embed_tokens(const Architecture& architecture, const std::vector<std::int32_t>& ids, ConstTensor table, Activations& activations,
                  Stream& stream);

}  // namespace qpipe
