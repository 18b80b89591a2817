// Softmax attention on a block of whole sequences.
#pragma once

#include "stages/mixers.h"

namespace qpipe {

std::vector<LinearSpec> mixer_linears(const Attention& attention);
const LinearSpec& last_linear(const Attention& attention);
void add_mixer_norms(const Attention& attention, std::vector<NormTensors>& norms);
std::vector<TensorSpec> mixer_vectors(const Attention& attention);
void add_mixer_steps(const Attention& attention, std::int64_t hidden, std::vector<Step>& steps);
std::int64_t mixer_scratch_width(const Attention& attention);
KindTables make_mixer_tables(const Attention& attention, std::int64_t seqlen, Stream& stream);
std::int64_t mixer_table_bytes(const Attention& attention, std::int64_t seqlen);
// Step 0: y = the heads' outputs.
void run_mixer(const Attention& attention, const MixerRun& run, Stream& stream);

// Several linears of one input, their outputs side by side in y.
void project(const std::vector<LinearSpec>& linears, const Layer& layer, ConstTensor x, Tensor y,
             Stream& stream);

}  // namespace qpipe
