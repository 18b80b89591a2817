// Short convolutions with two gates on a block of whole sequences (stages/architecture.h).
//
// Steps: in, gate, convolution, gate → x = what `out` reads
//        out
#pragma once

#include "stages/mixers.h"

namespace qpipe {

std::vector<LinearSpec> mixer_linears(const ShortConv& conv);
const LinearSpec& last_linear(const ShortConv& conv);
void add_mixer_norms(const ShortConv& conv, std::vector<NormTensors>& norms);
std::vector<TensorSpec> mixer_vectors(const ShortConv& conv);
void add_mixer_steps(const ShortConv& conv, std::int64_t hidden, std::vector<Step>& steps);
std::int64_t mixer_scratch_width(const ShortConv& conv);
KindTables make_mixer_tables(const ShortConv& conv, std::int64_t seqlen, Stream& stream);
std::int64_t mixer_table_bytes(const ShortConv& conv, std::int64_t seqlen);
void run_mixer(const ShortConv& conv, const MixerRun& run, Stream& stream);

}  // namespace qpipe
