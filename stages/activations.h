// The calibration set's activations on one rank: the residual stream and the current step's input
// of every block of samples it owns.
#pragma once

#include <bit>
#include <functional>
#include <map>
#include <vector>

#include "launch/comm.h"
#include "stages/block_store.h"
#include "stages/experts.h"
#include "stages/layer.h"

namespace qpipe {

// How the samples are cut: fixed blocks, whatever the number of ranks. Only the owners change.
struct Blocking {
  std::int64_t samples = 0;
  std::int64_t seqlen = 0;
  std::int64_t block_samples = 1;

  std::int64_t blocks() const { return (samples + block_samples - 1) / block_samples; }
  std::int64_t block_begin(std::int64_t block) const { return block * block_samples; }
  std::int64_t block_size(std::int64_t block) const {
    return std::min(block_samples, samples - block_begin(block));
  }
  std::int64_t block_tokens() const { return block_samples * seqlen; }
  std::int64_t tokens() const { return samples * seqlen; }
  int log2_tokens() const {  // rounded up
    return static_cast<int>(std::bit_width(static_cast<std::uint64_t>(tokens() - 1)));
  }
};

// Blocks of at most micro_batch tokens, at least one sample.
Blocking cut_samples(std::int64_t samples, std::int64_t seqlen, std::int64_t micro_batch);

// What a step's linears read.
struct StepInput {
  BlockStore blocks;  // [tokens, width], memory for at least as many columns
  std::int64_t width = 0;
  Array<float> maximum;  // [1, at least width]: max |x| of each column of the panels, side by side,
                         // over the own blocks
  Step step;             // whose input it is
};

// What a starved expert is calibrated with on top (stages/starved.h): rows of its second step's
// input for tokens that do not come to it, [rows, ffn] of each own block, in host memory.
struct ExtraRows {
  struct Block {
    std::int64_t rows = 0;
    std::vector<unsigned char> values;
  };
  std::vector<Block> blocks;
};

struct Activations {
  Blocking blocking;
  RowRange owned;                 // blocks of this rank
  BlockStore hidden;              // [tokens, stream_width]
  BlockStore spare;               // a second one, where the run keeps two: make_spare
  std::vector<StepInput> inputs;  // one, which becomes that of step after step; or of all steps
                                  // (Places::inputs_kept)
  std::size_t current = 0;        // the step's of them
  std::vector<Routes> routes;     // of each own block, in a layer with experts
  std::map<std::int64_t, ExtraRows> extra_rows;  // by expert
  Array<float> output_maximum;  // [1, hidden]: max |x| of each column of the output of the
                                // layer that ran last, over the own blocks
  TensorArray scratch;          // [tokens of one block, scratch_width]

  bool keeps_inputs() const { return inputs.size() > 1; }
  StepInput& input() { return inputs.at(current); }
  const StepInput& input() const { return inputs.at(current); }
  std::size_t blocks() const { return static_cast<std::size_t>(owned.count); }
  std::int64_t block(std::size_t local) const {
    return owned.begin + static_cast<std::int64_t>(local);
  }
  std::int64_t first_sample(std::size_t local) const { return blocking.block_begin(block(local)); }
};

// Tokens of each of the owned blocks: the rows of a BlockStore.
std::vector<std::int64_t> block_rows(const Blocking& blocking, const RowRange& owned);

Activations make_activations(const Architecture& architecture, const Blocking& blocking, int rank,
                             int ranks, const Places& places, Stream& stream);

// The same of another model, without scratch memory: it borrows what the first one has.
Activations make_activations_beside(const Architecture& architecture, const Activations& first,
                                    const Places& places, Stream& stream);

// Memory for activations.spare, at the same place as activations.hidden's, if there is none yet.
void make_spare(Activations& activations, const Places& places, Stream& stream);

// Whether block b is one of the evenly spaced blocks that hold about `tokens` tokens, at least one;
// all blocks for 0.
bool is_sampled(const Blocking& blocking, std::int64_t block, std::int64_t tokens);
std::int64_t sampled_tokens(const Blocking& blocking,
                            std::int64_t tokens);  // that those blocks have
std::vector<std::size_t> sampled_blocks(const Activations& activations,
                                        std::int64_t tokens);  // those of them that are owned

// Runs work(local, block) on the device for each of the owned blocks, in order. What is not used
// has no memory (Access). work may change block.input's width; the caller then sets
// activations.input()'s.
using BlockWork = std::function<void(std::size_t local, Block& block)>;
void visit(Activations& activations, Access hidden, Access input, const BlockWork& work,
           Stream& stream);

// The inputs alone, of some of the owned blocks.
using InputWork = std::function<void(std::size_t local, ConstTensor input)>;
void visit_inputs(const Activations& activations, const std::vector<std::size_t>& locals,
                  const InputWork& work, Stream& stream);
void visit_inputs(const Activations& activations, const InputWork& work, Stream& stream);

// stages/layer.h's functions for all blocks. The first two leave the input of the step that comes
// next, or turn to it where all are kept; forward_layer leaves none.
void start_layer(const Layer& layer, Activations& activations, Stream& stream);
void advance(const Layer& layer, const DecoderTables& tables, const std::vector<Step>& steps,
             std::size_t step, Activations& activations, Stream& stream);
void forward_layer(const Layer& layer, const DecoderTables& tables, Activations& activations,
                   Stream& stream);

// The largest |x| of the output of the layer that ran last, over the blocks of all ranks; infinity
// where one is NaN. Collective.
double largest_output(const Activations& activations, Comm& comm, Stream& stream);

// Where all inputs are kept, the forward pass goes ahead of start_layer and advance, block by
// block.
void begin_keeping(const Layer& layer, Activations& activations, Stream& stream);
// block: the layer's input in block.hidden, memory for widest_input columns in block.input. Its
// output in block.hidden.
void forward_and_keep(const Layer& layer, const DecoderTables& tables, std::size_t local,
                      Block& block, Activations& activations, Stream& stream);

// For whoever runs a layer block by block: before the first block, and with each block's output.
void begin_output(Activations& activations, Stream& stream);
void measure_output(const Block& block, const Activations& activations, Stream& stream);

}  // namespace qpipe
