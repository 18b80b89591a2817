#include "stages/short_conv.h"

#include "kernels/multiply.h"
#include "stages/attention.h"
#include "stages/convolution.h"
#include "stages/layer_lists.h"

namespace qpipe {

std::vector<LinearSpec> mixer_linears(const ShortConv& s) { return {s.in, s.out}; }

const LinearSpec& last_linear(const ShortConv& s) { return s.out; }

void add_mixer_norms(const ShortConv&, std::vector<NormTensors>&) {}

std::vector<TensorSpec> mixer_vectors(const ShortConv& s) {
  std::vector<TensorSpec> tensors;
  add_tensors(s.conv, tensors);
  return tensors;
}

void add_mixer_steps(const ShortConv& s, std::int64_t hidden, std::vector<Step>& steps) {
  steps.push_back(make_step(Part::mixer, 0, hidden, 0, 1));
  steps.push_back(make_step(Part::mixer, 1, s.out.in_features, 1, 1));
}

std::int64_t mixer_scratch_width(const ShortConv& s) { return s.in.out_features; }

KindTables make_mixer_tables(const ShortConv&, std::int64_t, Stream&) { return {}; }
std::int64_t mixer_table_bytes(const ShortConv&, std::int64_t) { return 0; }

void run_mixer(const ShortConv& s, const MixerRun& run, Stream& stream) {
  const std::int64_t width = s.conv.channels;
  const Tensor projected = run.scratch.part(0, run.x.rows, 3 * width);
  project({s.in}, run.layer, run.x, projected, stream);
  const Tensor x = projected.col_range(2 * width, width);
  multiply(projected.col_range(0, width), x, stream);
  convolve(s.conv, run.layer, x, false, run.seqlen, run.y, stream);
  multiply(projected.col_range(width, width), run.y, stream);
}

}  // namespace qpipe
