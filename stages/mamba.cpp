#include "stages/mamba.h"

#include <algorithm>

#include "kernels/activation.h"
#include "kernels/selective_scan.h"
#include "stages/attention.h"
#include "stages/convolution.h"
#include "stages/layer_lists.h"

namespace qpipe {

namespace {

template <class Void>
struct Halves {
  AnyMatrix<Void> x;
  AnyMatrix<Void> z;
};

// The panels of the second step's input.
template <class Void>
Halves<Void> panels(const Mamba& m, AnyMatrix<Void> input) {
  const AnyMatrix<Void> x = input.part(0, input.rows, m.inner());
  return {x, input.part(x.size(), input.rows, m.inner())};
}

void make_halves(const Mamba& m, const MixerRun& run, Stream& stream) {
  const Tensor projected = run.scratch.part(0, run.x.rows, m.in.out_features);
  project({m.in}, run.layer, run.x, projected, stream);
  const Halves<void> y = panels(m, run.y);
  convolve(m.conv, run.layer, projected.col_range(0, m.inner()), true, run.seqlen, y.x, stream);
  convert(projected.col_range(m.inner(), m.inner()), y.z, stream);
}

void scan(const Mamba& m, const MixerRun& run, Stream& stream) {
  const Layer& layer = run.layer;
  const Halves<const void> input = panels(m, run.x);
  const Tensor projected = run.scratch.part(0, run.x.rows, m.x_proj.out_features);
  const Tensor steps = run.scratch.part(projected.size(), run.x.rows, m.inner());
  project({m.x_proj}, layer, input.x, projected, stream);
  const Tensor dt = projected.col_range(0, m.rank());
  const Tensor b = projected.col_range(m.rank(), m.state);
  const Tensor c = projected.col_range(m.rank() + m.state, m.state);
  const auto normed = [&](const std::optional<NormSpec>& norm, Tensor x) {
    if (norm) apply_norm(*norm, layer.norms.at(norm->name), x, x, stream);
  };
  normed(m.dt_norm, dt);
  normed(m.b_norm, b);
  normed(m.c_norm, c);
  project({m.dt_proj}, layer, dt, steps, stream);
  const Matrix<const float> a_log(layer.vectors.at(m.a_log).data, m.inner(), m.state);
  selective_scan(input.x, steps, b, c, input.z, a_log, layer.vectors.at(m.d), run.seqlen, run.y,
                 stream);
}

}  // namespace

std::vector<LinearSpec> mixer_linears(const Mamba& m) { return {m.in, m.x_proj, m.dt_proj, m.out}; }

const LinearSpec& last_linear(const Mamba& m) { return m.out; }

void add_mixer_norms(const Mamba& m, std::vector<NormTensors>& norms) {
  add_norm(m.dt_norm, norms);
  add_norm(m.b_norm, norms);
  add_norm(m.c_norm, norms);
}

std::vector<TensorSpec> mixer_vectors(const Mamba& m) {
  std::vector<TensorSpec> tensors;
  add_tensors(m.conv, tensors);
  tensors.push_back({m.a_log, {m.inner(), m.state}, TensorRole::vector});
  tensors.push_back({m.d, {m.inner()}, TensorRole::vector});
  return tensors;
}

void add_mixer_steps(const Mamba& m, std::int64_t hidden, std::vector<Step>& steps) {
  steps.push_back(make_step(Part::mixer, 0, hidden, 0, 1));
  Step halves = make_step(Part::mixer, 1, 2 * m.inner(), 1, 2);
  halves.panels = {{m.inner(), 1, false}, {m.inner(), 1, false}};
  halves.groups = {{0, m.inner(), {halves.runs.front()}}};  // dt_proj is not quantized
  steps.push_back(std::move(halves));
  steps.push_back(make_step(Part::mixer, 2, m.inner(), 3, 1));
}

std::int64_t mixer_scratch_width(const Mamba& m) {
  return std::max(m.in.out_features, m.x_proj.out_features + m.inner());
}

KindTables make_mixer_tables(const Mamba&, std::int64_t, Stream&) { return {}; }
std::int64_t mixer_table_bytes(const Mamba&, std::int64_t) { return 0; }

void run_mixer(const Mamba& m, const MixerRun& run, Stream& stream) {
  if (run.number == 0) return make_halves(m, run, stream);
  scan(m, run, stream);
}

}  // namespace qpipe
