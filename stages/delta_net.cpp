#include "stages/delta_net.h"

#include "kernels/causal_conv.h"
#include "kernels/delta_chunk.h"
#include "kernels/delta_gates.h"
#include "stages/attention.h"
#include "stages/convolution.h"
#include "stages/layer_lists.h"

namespace qpipe {

namespace {

// Rows of every part of the scratch memory begin at multiples of 16 bytes.
std::int64_t padded(std::int64_t columns) { return (columns + 7) / 8 * 8; }

std::int64_t conv_width(const DeltaNet& n) { return 2 * n.heads.keys() + n.heads.values(); }

constexpr std::int64_t float_elements = 2;  // of the compute type, on CUDA

// Takes the scratch memory part by part.
class Scratch {
 public:
  Scratch(Tensor memory, std::int64_t tokens) : memory_(memory), tokens_(tokens) {}

  Tensor take(std::int64_t columns) {
    const Tensor part = memory_.part(next_, tokens_, padded(columns));
    next_ += part.size();
    return part.col_range(0, columns);
  }
  Matrix<float> take_floats(std::int64_t columns) {
    return {static_cast<float*>(take(float_elements * padded(columns)).data), tokens_, columns};
  }
  Tensor rest(std::int64_t columns) const { return memory_.part(next_, 1, tokens_ * columns); }

 private:
  Tensor memory_;
  std::int64_t tokens_;
  std::int64_t next_ = 0;
};

ConstTensor from(ConstTensor projected, const SlicedColumns& columns) {
  return projected.col_range(columns.first, columns.slices.width());
}

// Of the chunked form's products: three with the state, and the triangles of k kᵀ, q kᵀ and what
// they multiply.
std::int64_t chunked_width(const DeltaHeads& h) {
  return h.value_heads * (3 * h.key_dim * h.value_dim + delta_chunk * (h.key_dim + h.value_dim));
}

struct Gate {
  ConstTensor x;
  HeadSlices slices;
};

// The columns of a gate, or what a linear makes of them.
Gate gate_of(const SlicedColumns& columns, const std::optional<LinearSpec>& up, const Layer& layer,
             ConstTensor projected, Scratch& scratch, Stream& stream) {
  const ConstTensor x = from(projected, columns);
  if (!up) return {x, columns.slices};
  const Tensor y = scratch.take(up->out_features);
  project({*up}, layer, x, y, stream);
  return {y, {1, y.cols, y.cols}};
}

// The convolution's weights of `count` channels, from channel `first` of q, k and v on.
Matrix<const float> conv_weight(const DeltaNet& n, const Layer& layer, std::int64_t first,
                                std::int64_t count) {
  for (const CausalConv& conv : n.convolutions) {
    if (first < conv.channels) return conv_weight(conv, layer).row_range(first, count);
    first -= conv.channels;
  }
  throw std::logic_error("a delta net's convolutions have fewer channels than q, k and v");
}

}  // namespace

std::vector<LinearSpec> mixer_linears(const DeltaNet& n) {
  std::vector<LinearSpec> linears = n.in;
  if (n.gate_up) linears.push_back(*n.gate_up);
  if (n.decay_up) linears.push_back(*n.decay_up);
  linears.push_back(n.out);
  return linears;
}

const LinearSpec& last_linear(const DeltaNet& n) { return n.out; }

void add_mixer_norms(const DeltaNet&, std::vector<NormTensors>&) {}

// What decays and norms are made of stays float32.
std::vector<TensorSpec> mixer_vectors(const DeltaNet& n) {
  std::vector<TensorSpec> tensors;
  for (const CausalConv& conv : n.convolutions) add_tensors(conv, tensors);
  const std::vector<std::int64_t> heads{n.heads.value_heads};
  const std::vector<std::int64_t> four_axes{1, 1, n.heads.value_heads, 1};
  tensors.push_back({n.a_log, n.a_log_is_4d ? four_axes : heads, TensorRole::vector});
  tensors.push_back({n.dt_bias, {n.heads.decays()}, TensorRole::vector});
  tensors.push_back({n.norm, {n.heads.value_dim}, TensorRole::vector});
  return tensors;
}

// gate_up and decay_up read what is stored nowhere, and stay as they are: no group has them.
void add_mixer_steps(const DeltaNet& n, std::int64_t hidden, std::vector<Step>& steps) {
  require((!n.gate_up || n.gate_up->kept) && (!n.decay_up || n.decay_up->kept),
          "a delta net's linears of low rank are not quantized");
  const std::size_t first_runs = n.in.size() + static_cast<std::size_t>(n.ups());
  Step in = make_step(Part::mixer, 0, hidden, 0, first_runs);
  in.groups.front().linears.resize(n.in.size());
  in.state_width = chunked_width(n.heads);
  steps.push_back(std::move(in));
  steps.push_back(make_step(Part::mixer, 1, n.out.in_features, first_runs, 1));
}

std::int64_t mixer_scratch_width(const DeltaNet& n) {
  std::int64_t width = padded(outputs(n.in)) + padded(conv_width(n));
  for (const std::optional<LinearSpec>& up : {n.gate_up, n.decay_up})
    if (up) width += padded(up->out_features);
  for (const std::int64_t floats : {n.heads.decays(), n.heads.value_heads})
    width += float_elements * padded(floats);
  return width + delta_rule_scratch(n.heads);
}

KindTables make_mixer_tables(const DeltaNet&, std::int64_t, Stream&) { return {}; }

std::int64_t mixer_table_bytes(const DeltaNet&, std::int64_t) { return 0; }

void run_mixer(const DeltaNet& n, const MixerRun& run, Stream& stream) {
  const Layer& layer = run.layer;
  const DeltaHeads& heads = n.heads;
  const auto vector = [&](const std::string& name) { return layer.vectors.at(name); };
  Scratch scratch(run.scratch, run.x.rows);
  const Tensor projected = scratch.take(outputs(n.in));
  project(n.in, layer, run.x, projected, stream);
  const Gate z = gate_of(n.gate, n.gate_up, layer, projected, scratch, stream);
  const Gate a = gate_of(n.decay, n.decay_up, layer, projected, scratch, stream);

  const Tensor qkv = scratch.take(conv_width(n));
  const auto convolved = [&](const SlicedColumns& columns, std::int64_t first) {
    const Tensor y = qkv.col_range(first, columns.count());
    causal_conv_slices(from(projected, columns), columns.slices,
                       conv_weight(n, layer, first, columns.count()), {}, true, run.seqlen, y,
                       stream);
    return y;
  };
  const Tensor q = convolved(n.q, 0);
  const Tensor k = convolved(n.k, heads.keys());
  const Tensor v = convolved(n.v, 2 * heads.keys());

  const Matrix<float> g = scratch.take_floats(heads.decays());
  const Matrix<float> beta = scratch.take_floats(heads.value_heads);
  log_decay(a.x, a.slices, vector(n.a_log), vector(n.dt_bias), g, stream);
  write_strength(from(projected, n.strength), n.strength.slices, beta, stream);

  delta_rule(q, k, v, g, beta, heads, run.seqlen, run.y, scratch.rest(delta_rule_scratch(heads)),
             stream);
  gated_rms_norm(run.y, vector(n.norm), n.eps, z.x, z.slices, n.norm_gate, run.y, stream);
}

}  // namespace qpipe
