// Gated delta nets on a block of whole sequences (stages/architecture.h).
#pragma once

#include "stages/mixers.h"

namespace qpipe {

std::vector<LinearSpec> mixer_linears(const DeltaNet& net);
const LinearSpec& last_linear(const DeltaNet& net);
void add_mixer_norms(const DeltaNet& net, std::vector<NormTensors>& norms);
std::vector<TensorSpec> mixer_vectors(const DeltaNet& net);
void add_mixer_steps(const DeltaNet& net, std::int64_t hidden, std::vector<Step>& steps);
std::int64_t mixer_scratch_width(const DeltaNet& net);
KindTables make_mixer_tables(const DeltaNet& net, std::int64_t seqlen, Stream& stream);
std::int64_t mixer_table_bytes(const DeltaNet& net, std::int64_t seqlen);
// Step 0: y = the heads' outputs, normed and gated.
void run_mixer(const DeltaNet& net, const MixerRun& run, Stream& stream);

}  // namespace qpipe
