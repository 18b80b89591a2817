// Multi-head latent attention on a block of whole sequences (stages/architecture.h).
//
// Steps: q_a and kv_a, norms        → x = the latents, in two panels: that of q, or q itself where
//                                     there is no q_a; that of k and v with the shared key behind
//                                     it
//        q_b and kv_b, attention    → x = the heads' outputs
//        out
// An indexer (DeepSeek-V3.2) has its key and weights made in the first step, a third panel, and its
// q in the second; it is never quantized. The Hessians of q_b and kv_b are those of the normed
// latents.
#pragma once

#include "stages/mixers.h"

namespace qpipe {

std::vector<LinearSpec> mixer_linears(const LatentAttention& attention);
const LinearSpec& last_linear(const LatentAttention& attention);
void add_mixer_norms(const LatentAttention& attention, std::vector<NormTensors>& norms);
std::vector<TensorSpec> mixer_vectors(const LatentAttention& attention);
void add_mixer_steps(const LatentAttention& attention, std::int64_t hidden,
                     std::vector<Step>& steps);
std::int64_t mixer_scratch_width(const LatentAttention& attention);
KindTables make_mixer_tables(const LatentAttention& attention, std::int64_t seqlen, Stream& stream);
std::int64_t mixer_table_bytes(const LatentAttention& attention, std::int64_t seqlen);
void run_mixer(const LatentAttention& attention, const MixerRun& run, Stream& stream);

}  // namespace qpipe
