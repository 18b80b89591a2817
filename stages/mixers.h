// What a layer asks of its mixer: an overload of each of these for every alternative of
// LayerSpec::mixer, in a file of its own (stages/attention.h). layer.cpp calls them by std::visit.
//
//   mixer_linears       those of the layer's linears that are its own, the last one last
//   last_linear         whose output, for the last step's input, goes to the residual stream; or
//   mixer_outputs       several, each of a panel of that input
//   add_mixer_norms     its norms
//   mixer_vectors       tensors that are neither a linear's nor a norm's
//   add_mixer_steps     its steps; its first linear is the layer's first
//   mixer_scratch_width columns of scratch that run_mixer needs, per token
//   make_mixer_tables   device tables for one sequence length; mixer_table_bytes: their size
//   run_mixer           any of its steps but the last: y = the next step's input
#pragma once

#include "stages/layer.h"

namespace qpipe {

// A block of whole sequences at a step of the mixer.
struct MixerRun {
  const Layer& layer;
  const KindTables& tables;
  int number = 0;  // the step's
  std::int64_t seqlen = 0;
  ConstTensor x;   // the step's input
  Tensor carried;  // columns that travel with the residual stream; empty where nothing does
  Tensor y;        // the next step's input; may lie in x's memory
  Tensor scratch;  // [tokens, mixer_scratch_width], compute type
};

struct MixerOutput {
  LinearSpec linear;
  float multiplier = 1.0f;  // of what goes to the residual stream
};

}  // namespace qpipe
