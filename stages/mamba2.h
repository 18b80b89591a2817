// Mamba-2 on a block of whole sequences (stages/architecture.h).
//
// Steps: in, convolution, state space, norm with the gate → x = what `out` reads
//        out
#pragma once

#include "stages/mixers.h"

namespace qpipe {

std::vector<LinearSpec> mixer_linears(const Mamba2& mamba);
const LinearSpec& last_linear(const Mamba2& mamba);
void add_mixer_norms(const Mamba2& mamba, std::vector<NormTensors>& norms);
std::vector<TensorSpec> mixer_vectors(const Mamba2& mamba);
void add_mixer_steps(const Mamba2& mamba, std::int64_t hidden, std::vector<Step>& steps);
std::int64_t mixer_scratch_width(const Mamba2& mamba);
KindTables make_mixer_tables(const Mamba2& mamba, std::int64_t seqlen, Stream& stream);
std::int64_t mixer_table_bytes(const Mamba2& mamba, std::int64_t seqlen);
void run_mixer(const Mamba2& mamba, const MixerRun& run, Stream& stream);

// The same in two halves, for a mixer that stands beside another: what is between them lies in the
// scratch memory.
struct StateSpaceOutput {
  Tensor y;
  ConstTensor z;
};
StateSpaceOutput run_state_space(const Mamba2& mamba, const Layer& layer, std::int64_t seqlen,
                                 ConstTensor x, Tensor scratch, Stream& stream);
void gate_output(const Mamba2& mamba, const Layer& layer, const StateSpaceOutput& output, Tensor y,
                 Stream& stream);

}  // namespace qpipe
