// The calibration set's activations on one rank: the residual stream and the current step's input of every block of samples it owns.
#pragma once

#include <functional>
#include <vector>

#include "launch/comm.h"
#include "stages/block_store.h"
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
  std::int64_t block_tokens() const { return block_samples * seqlen; }
  std::int64_t tokens() const { return samples * seqlen; }
};

// Blocks of at most micro_batch tokens, at least one sample.
Blocking cut_samples(std::int64_t samples, std::int64_t seqlen, std::int64_t micro_batch);

struct Activations {
  Blocking blocking;
  RowRange owned;                // blocks of this rank
  BlockStore hidden;             // [tokens, hidden]
  BlockStore input;              // [tokens, input_width], memory for widest_input columns
  std::int64_t input_width = 0;  // of the current step
  Array<float> input_maximum;    // [1, widest_input]: max |x| of each of the input's columns, over the own blocks
  TensorArray scratch;           // [tokens of one block, scratch_width]

  std::size_t blocks() const { return static_cast<std::size_t>(owned.count); }
  std::int64_t block(std::size_t local) const { return owned.begin + static_cast<std::int64_t>(local); }
  std::int64_t first_sample(std::size_t local) const { return blocking.block_begin(block(local)); }
};

// Tokens of each of the owned blocks: the rows of a BlockStore.
std::vector<std::int64_t> block_rows(const Blocking& blocking, const RowRange& owned);

Activations make_activations(const Architecture& architecture, const Blocking& blocking, int rank, int ranks, const Places& places,
                             Stream& stream);

// Whether block b is one of the evenly spaced blocks that hold about `tokens` tokens, at least one; all blocks for 0.
bool is_sampled(const Blocking& blocking, std::int64_t block, std::int64_t tokens);
std::int64_t sampled_tokens(const Blocking& blocking, std::int64_t tokens);                    // that those blocks have
std::vector<std::size_t> sampled_blocks(const Activations& activations, std::int64_t tokens);  // those of them that are owned

// Runs work(local, block) on the device for each of the owned blocks, in order. What is not used has no memory (Access). work may change
// block.input's width; the caller then sets activations.input_width.
using BlockWork = std::function<void(std::size_t local, Block& block)>;
void visit(Activations& activations, Access hidden, Access input, const BlockWork& work, Stream& stream);

// The inputs alone, of some of the owned blocks.
using InputWork = std::function<void(std::size_t local, ConstTensor input)>;
void visit_inputs(const Activations& activations, const std::vector<std::size_t>& locals, const InputWork& work, Stream& stream);
void visit_inputs(const Activations& activations, const InputWork& work, Stream& stream);

// hidden = embedding of the tokens. ids: row-major [samples, seqlen] on the host, all samples; table [vocab, hidden] on the device.
void embed_tokens(const Architecture& architecture, const std::vector<std::int32_t>& ids, ConstTensor table, Activations& activations,
                  Stream& stream);

// stages/layer.h's functions for all blocks. The first two leave input_width and input_maximum of the step that comes next; forward_layer
// leaves no input.
void start_layer(const Architecture& architecture, const Layer& layer, Activations& activations, Stream& stream);
void advance(const Architecture& architecture, const DecoderTables& tables, const Layer& layer, StepKind kind, Activations& activations,
             Stream& stream);
void forward_layer(const Architecture& architecture, const DecoderTables& tables, const Layer& layer, Activations& activations,
                   Stream& stream);

}  // namespace qpipe
