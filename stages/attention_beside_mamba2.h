// Attention and Mamba-2 side by side on a block of whole sequences (stages/architecture.h).
//
// Steps: attention's and Mamba-2's first → x = two panels: what attention's `out` reads, and what
//                                          Mamba-2's does
//        both `out`s
#pragma once

#include "stages/mixers.h"

namespace qpipe {

std::vector<LinearSpec> mixer_linears(const AttentionBesideMamba2& both);
std::vector<MixerOutput> mixer_outputs(const AttentionBesideMamba2& both);
void add_mixer_norms(const AttentionBesideMamba2& both, std::vector<NormTensors>& norms);
std::vector<TensorSpec> mixer_vectors(const AttentionBesideMamba2& both);
void add_mixer_steps(const AttentionBesideMamba2& both, std::int64_t hidden,
                     std::vector<Step>& steps);
std::int64_t mixer_scratch_width(const AttentionBesideMamba2& both);
KindTables make_mixer_tables(const AttentionBesideMamba2& both, std::int64_t seqlen,
                             Stream& stream);
std::int64_t mixer_table_bytes(const AttentionBesideMamba2& both, std::int64_t seqlen);
void run_mixer(const AttentionBesideMamba2& both, const MixerRun& run, Stream& stream);

}  // namespace qpipe
