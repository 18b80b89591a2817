// Mamba on a block of whole sequences (stages/architecture.h).
//
// Steps: in, convolution                              → x = two panels: what x_proj reads, and z
//        x_proj, norms, dt_proj, selective scan, gate → x = what `out` reads
//        out
#pragma once

#include "stages/mixers.h"

namespace qpipe {

std::vector<LinearSpec> mixer_linears(const Mamba& mamba);
const LinearSpec& last_linear(const Mamba& mamba);
void add_mixer_norms(const Mamba& mamba, std::vector<NormTensors>& norms);
std::vector<TensorSpec> mixer_vectors(const Mamba& mamba);
void add_mixer_steps(const Mamba& mamba, std::int64_t hidden, std::vector<Step>& steps);
std::int64_t mixer_scratch_width(const Mamba& mamba);
KindTables make_mixer_tables(const Mamba& mamba, std::int64_t seqlen, Stream& stream);
std::int64_t mixer_table_bytes(const Mamba& mamba, std::int64_t seqlen);
void run_mixer(const Mamba& mamba, const MixerRun& run, Stream& stream);

}  // namespace qpipe
