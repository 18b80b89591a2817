#include "stages/mamba2.h"

#include <array>

#include "kernels/activation.h"
#include "kernels/gated_group_norm.h"
#include "kernels/multiply.h"
#include "kernels/state_space.h"
#include "stages/attention.h"
#include "stages/convolution.h"
#include "stages/layer_lists.h"

namespace qpipe {

namespace {

// Rows of the projection's output begin at multiples of 16 bytes.
std::int64_t projected_stride(const Mamba2& m) { return (m.in.out_features + 7) / 8 * 8; }

// z | x | B | C | Δ times their multipliers.
void multiply_parts(const Mamba2& m, Tensor projected, Stream& stream) {
  const std::int64_t of_groups = m.layout.groups * m.layout.state;
  const std::array<std::int64_t, 5> widths{m.layout.inner(), m.layout.inner(), of_groups, of_groups,
                                           m.layout.heads};
  std::int64_t column = 0;
  for (std::size_t part = 0; part < widths.size(); ++part) {
    if (m.multipliers[part] != 1.0f)
      scale(projected.col_range(column, widths[part]), m.multipliers[part], stream);
    column += widths[part];
  }
}

}  // namespace

std::vector<LinearSpec> mixer_linears(const Mamba2& m) { return {m.in, m.out}; }

const LinearSpec& last_linear(const Mamba2& m) { return m.out; }

void add_mixer_norms(const Mamba2& m, std::vector<NormTensors>& norms) { add_norm(m.norm, norms); }

std::vector<TensorSpec> mixer_vectors(const Mamba2& m) {
  std::vector<TensorSpec> tensors;
  add_tensors(m.conv, tensors);
  for (const std::string& name : {m.a_log, m.dt_bias, m.d})
    tensors.push_back({name, {m.layout.heads}, TensorRole::vector});
  return tensors;
}

void add_mixer_steps(const Mamba2& m, std::int64_t hidden, std::vector<Step>& steps) {
  steps.push_back(make_step(Part::mixer, 0, hidden, 0, 1));
  steps.push_back(make_step(Part::mixer, 1, m.out.in_features, 1, 1));
}

std::int64_t mixer_scratch_width(const Mamba2& m) { return projected_stride(m) + m.layout.width(); }

KindTables make_mixer_tables(const Mamba2&, std::int64_t, Stream&) { return {}; }
std::int64_t mixer_table_bytes(const Mamba2&, std::int64_t) { return 0; }

StateSpaceOutput run_state_space(const Mamba2& m, const Layer& layer, std::int64_t seqlen,
                                 ConstTensor x, Tensor scratch, Stream& stream) {
  const StateSpaceLayout& layout = m.layout;
  const std::int64_t inner = layout.inner();
  const Tensor memory = scratch.part(0, x.rows, projected_stride(m));
  const Tensor projected = memory.col_range(0, m.in.out_features);
  const Tensor xbc = scratch.part(memory.size(), x.rows, layout.width());
  project({m.in}, layer, x, projected, stream);
  multiply_parts(m, projected, stream);
  convolve(m.conv, layer, projected.col_range(inner, layout.width()), true, seqlen, xbc, stream);
  StateSpaceParameters parameters;
  parameters.a_log = layer.vectors.at(m.a_log);
  parameters.dt_bias = layer.vectors.at(m.dt_bias);
  parameters.d = layer.vectors.at(m.d);
  parameters.shortest = m.shortest_step;
  parameters.longest = m.longest_step;
  const Tensor y = projected.col_range(inner, inner);  // where x was before the convolution
  state_space(xbc, projected.col_range(inner + layout.width(), layout.heads), layout, parameters,
              seqlen, y, stream);
  return {y, projected.col_range(0, inner)};
}

void gate_output(const Mamba2& m, const Layer& layer, const StateSpaceOutput& output, Tensor y,
                 Stream& stream) {
  if (m.norm)
    return gated_group_norm(output.y, output.z, layer.norms.at(m.norm->name).weight,
                            {m.norm_groups, m.norm->eps, m.gate_first}, y, stream);
  activation(output.z, Activation::silu, y, stream);
  multiply(output.y, y, stream);
}

void run_mixer(const Mamba2& m, const MixerRun& run, Stream& stream) {
  gate_output(m, run.layer, run_state_space(m, run.layer, run.seqlen, run.x, run.scratch, stream),
              run.y, stream);
}

}  // namespace qpipe
