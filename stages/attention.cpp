#include "stages/attention.h"

#include <cmath>

#include "kernels/activation.h"
#include "kernels/limit.h"
#include "kernels/linear.h"
#include "kernels/multiply.h"
#include "kernels/norm.h"
#include "stages/layer_lists.h"
#include "stages/rope_table.h"

namespace qpipe {

namespace {

// Heads of one kind in a row of the fused matrix, evenly apart.
struct Heads {
  std::int64_t first_column = 0;
  HeadSlices slices;
};

// `block` heads of `width` columns side by side, then the next from `block_stride` on.
Heads evenly_apart(std::int64_t first_column, std::int64_t count, std::int64_t block,
                   std::int64_t block_stride, std::int64_t width) {
  if (block >= count || block_stride == block * width) return {first_column, {count, width, width}};
  require(block == 1, "attention: a norm or scale of heads needs them evenly apart");
  return {first_column, {count, width, block_stride}};
}

Heads q_heads(const HeadLayout& h) {
  return evenly_apart(0, h.heads, h.heads_of_q_block(), h.q_group_stride, h.head_dim);
}
Heads k_heads(const HeadLayout& h) {
  return evenly_apart(h.k_begin, h.kv_heads, h.heads_of_kv_block(), h.kv_stride, h.head_dim);
}
Heads v_heads(const HeadLayout& h) {
  return evenly_apart(h.v_begin, h.kv_heads, h.heads_of_kv_block(), h.kv_stride, h.value_dim());
}

Tensor columns_of(Tensor qkv, const Heads& heads) {
  return qkv.col_range(heads.first_column, heads.slices.width());
}

void apply(const HeadNorm& head_norm, const Layer& layer, Tensor qkv, const Heads& heads,
           Stream& stream) {
  const NormSpec& spec = head_norm.norm;
  const Norm& norm = layer.norms.at(spec.name);
  const Tensor x = columns_of(qkv, heads);
  if (head_norm.layout == HeadNorm::Weight::whole) {
    require(heads.slices.stride == heads.slices.head_dim,
            "attention: a norm over all heads needs them side by side");
    return apply_norm(spec, norm, x, x, stream);
  }
  if (spec.kind == NormKind::rms)
    rms_norm_slices(x, heads.slices, norm.weight, spec.eps, spec.offset, stream);
  else
    layer_norm_slices(x, heads.slices, norm.weight, norm.bias, spec.eps, spec.offset, stream);
}

// Softmax does not change when a row's scores shift, so slope · (key position) serves as ALiBi's
// slope · (key − query).
std::vector<float> key_biases(const Alibi& alibi, std::int64_t seqlen) {
  std::vector<float> bias;
  for (const float slope : alibi.slopes)
    for (std::int64_t position = 0; position < seqlen; ++position) {
      const auto at = static_cast<float>(position);
      const float exact = slope * at;
      const float rounded = to_float(to_bf16(to_float(to_bf16(slope)) * to_float(to_bf16(at))));
      bias.push_back((alibi.in_bf16 ? rounded : exact) * alibi.scale);
    }
  return bias;
}

}  // namespace

void project(const std::vector<LinearSpec>& linears, const Layer& layer, ConstTensor x, Tensor y,
             Stream& stream) {
  std::int64_t column = 0;
  for (const LinearSpec& spec : linears) {
    const Linear& one = layer.linear(spec);
    linear(x, one.weight, one.bias, y.col_range(column, spec.out_features), stream);
    column += spec.out_features;
  }
}

std::vector<LinearSpec> mixer_linears(const Attention& a) {
  std::vector<LinearSpec> linears = a.qkv;
  if (a.gate) linears.push_back(*a.gate);
  linears.push_back(a.out);
  return linears;
}

const LinearSpec& last_linear(const Attention& a) { return a.out; }

void add_mixer_norms(const Attention& a, std::vector<NormTensors>& norms) {
  add_norm(a.q_norm, a.heads.heads, norms);
  if (a.takes_kv >= 0) return;
  add_norm(a.k_norm, a.heads.kv_heads, norms);
  add_norm(a.v_norm, a.heads.kv_heads, norms);
}

std::vector<TensorSpec> mixer_vectors(const Attention& a) {
  if (a.sinks.empty()) return {};
  return {{a.sinks, {a.heads.heads}, TensorRole::vector}};
}

void add_mixer_steps(const Attention& a, std::int64_t hidden, std::vector<Step>& steps) {
  const std::size_t in_linears = a.qkv.size() + (a.gate ? 1 : 0);
  Step in = make_step(Part::mixer, 0, hidden, 0, in_linears);
  in.attention_width = a.heads.heads * (a.heads.head_dim + a.heads.value_dim()) / 2;
  if (a.takes_kv >= 0) in.hidden = Access::read;
  if (a.keeps_kv >= 0) in.hidden = Access::update;
  steps.push_back(std::move(in));
  steps.push_back(make_step(Part::mixer, 1, a.out.in_features, in_linears, 1));
}

KindTables make_mixer_tables(const Attention& a, std::int64_t seqlen, Stream& stream) {
  KindTables tables;
  tables.inverse_frequencies = rope_table(a.rope, seqlen, stream);
  if (!a.alibi.slopes.empty())
    tables.key_bias = upload_table(key_biases(a.alibi, seqlen), a.heads.heads, stream);
  tables.query_scale = query_scale_table(a.query_scale, seqlen, stream);
  return tables;
}

std::int64_t mixer_table_bytes(const Attention& a, std::int64_t seqlen) {
  const auto heads = static_cast<std::int64_t>(a.alibi.slopes.size());
  return rope_table_bytes(a.rope, seqlen) + query_scale_table_bytes(a.query_scale, seqlen) +
         4 * heads * seqlen;
}

std::int64_t mixer_scratch_width(const Attention& a) {
  return a.heads.width() + (a.gate ? a.gate->out_features : 0);
}

void run_mixer(const Attention& a, const MixerRun& run, Stream& stream) {
  const Layer& layer = run.layer;
  const KindTables& tables = run.tables;
  const ConstTensor x = run.x;
  const HeadLayout& heads = a.heads;
  const Tensor qkv = run.scratch.part(0, x.rows, heads.width());
  project(a.qkv, layer, x, qkv, stream);
  Tensor gate;  // before y takes the place of x
  if (a.gate) {
    gate = run.scratch.part(qkv.size(), x.rows, a.gate->out_features);
    project({*a.gate}, layer, x, gate, stream);
  }
  if (a.clip_qkv > 0.0f) clamp(qkv, a.clip_qkv, stream);
  if (a.values_are_keys)
    convert(columns_of(qkv, k_heads(heads)), columns_of(qkv, v_heads(heads)), stream);
  const auto norms = [&] {
    if (a.q_norm) apply(*a.q_norm, layer, qkv, q_heads(heads), stream);
    if (a.takes_kv >= 0) return;
    if (a.k_norm) apply(*a.k_norm, layer, qkv, k_heads(heads), stream);
    if (a.v_norm) apply(*a.v_norm, layer, qkv, v_heads(heads), stream);
  };
  if (!a.norms_after_rope) norms();
  if (a.rope.enabled)
    rope(qkv, heads, tables.inverse_frequencies, amplitude_of(a.rope, run.seqlen),
         a.rope.interleaved, run.seqlen, stream);
  if (a.norms_after_rope) norms();
  if (!tables.query_scale.empty())
    scale_rows(columns_of(qkv, q_heads(heads)), tables.query_scale, stream);
  if (a.shares_kv()) {
    const Tensor kv = qkv.col_range(heads.k_begin, a.kv_width());
    if (a.keeps_kv >= 0) convert(kv, run.carried.col_range(a.keeps_kv, a.kv_width()), stream);
    if (a.takes_kv >= 0) convert(run.carried.col_range(a.takes_kv, a.kv_width()), kv, stream);
  }
  AttentionOptions options;
  options.scale = a.scale;
  options.window = a.window;
  options.chunk = a.chunk;
  options.soft_cap = a.soft_cap;
  options.key_bias = tables.key_bias;
  if (!a.sinks.empty()) options.sinks = layer.vectors.at(a.sinks);
  options.value_scale = a.value_scale;
  attention(qkv, heads, run.seqlen, options, run.y, stream);
  if (a.gate) gate_sigmoid(gate, run.y, stream);
}

}  // namespace qpipe
