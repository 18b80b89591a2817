#include "stages/attention.h"

#include <cmath>

#include "kernels/activation.h"
#include "kernels/limit.h"
#include "kernels/linear.h"
#include "kernels/multiply.h"
#include "kernels/norm.h"

namespace qpipe {

namespace {

// Heads of one kind in a row of the fused matrix, evenly apart.
struct Heads {
  std::int64_t first_column = 0;
  HeadSlices slices;
};

Heads q_heads(const HeadLayout& h) {
  const bool evenly = h.group() == 1 || h.q_group_stride == h.group() * h.head_dim;
  require(evenly, "attention: a norm or scale of q needs heads that lie evenly apart");
  return {0, {h.heads, h.head_dim, h.group() == 1 ? h.q_group_stride : h.head_dim}};
}
Heads k_heads(const HeadLayout& h) { return {h.k_begin, {h.kv_heads, h.head_dim, h.kv_stride}}; }
Heads v_heads(const HeadLayout& h) { return {h.v_begin, {h.kv_heads, h.head_dim, h.kv_stride}}; }

Tensor columns_of(Tensor qkv, const Heads& heads) {
  return qkv.col_range(heads.first_column, heads.slices.width());
}

void apply(const std::optional<HeadNorm>& head_norm, const Layer& layer, Tensor qkv,
           const Heads& heads, Stream& stream) {
  if (!head_norm) return;
  const NormSpec& spec = head_norm->norm;
  const Norm& norm = layer.norms.at(spec.name);
  const Tensor x = columns_of(qkv, heads);
  if (head_norm->layout == HeadNorm::Weight::whole) {
    require(heads.slices.stride == heads.slices.head_dim,
            "attention: a norm over all heads needs them side by side");
    return apply_norm(spec, norm, x, x, stream);
  }
  if (spec.kind == NormKind::rms)
    rms_norm_slices(x, heads.slices, norm.weight, spec.eps, spec.offset, stream);
  else
    layer_norm_slices(x, heads.slices, norm.weight, norm.bias, spec.eps, spec.offset, stream);
}

const std::vector<float>& frequencies_of(const Rope& rope, std::int64_t seqlen) {
  const bool longer = rope.longest > 0 && seqlen > rope.longest && !rope.longer_frequencies.empty();
  return longer ? rope.longer_frequencies : rope.inverse_frequencies;
}

Array<float> upload(const std::vector<float>& values, std::int64_t rows, Stream& stream) {
  Array<float> array(rows, static_cast<std::int64_t>(values.size()) / rows, stream);
  copy_to_device(array.view.data, values.data(), values.size() * sizeof(float), stream);
  return array;
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

KindTables make_attention_tables(const Attention& a, std::int64_t seqlen, Stream& stream) {
  KindTables tables;
  if (a.rope.enabled)
    tables.inverse_frequencies = upload(frequencies_of(a.rope, seqlen), 1, stream);
  if (!a.alibi.slopes.empty())
    tables.key_bias = upload(key_biases(a.alibi, seqlen), a.heads.heads, stream);
  if (a.query_scale_beta != 0.0f) {
    std::vector<float> scale;
    for (std::int64_t position = 0; position < seqlen; ++position)
      scale.push_back(1.0f + a.query_scale_beta * std::log1p(static_cast<float>(
                                                      position / a.query_scale_positions)));
    tables.query_scale = upload(scale, 1, stream);
  }
  return tables;
}

std::int64_t attention_table_bytes(const Attention& a, std::int64_t seqlen) {
  const auto heads = static_cast<std::int64_t>(a.alibi.slopes.size());
  const auto pairs = static_cast<std::int64_t>(frequencies_of(a.rope, seqlen).size());
  return 4 * ((a.rope.enabled ? pairs : 0) + heads * seqlen +
              (a.query_scale_beta != 0.0f ? seqlen : 0));
}

void attention_heads(const Attention& a, const Layer& layer, const KindTables& tables,
                     std::int64_t seqlen, ConstTensor x, Tensor carried, Tensor y, Tensor scratch,
                     Stream& stream) {
  const HeadLayout& heads = a.heads;
  const Tensor qkv(scratch.data, scratch.dtype, x.rows, heads.width());
  project(a.qkv, layer, x, qkv, stream);
  if (a.clip_qkv > 0.0f) clamp(qkv, a.clip_qkv, stream);
  if (a.values_are_keys)
    convert(columns_of(qkv, k_heads(heads)), columns_of(qkv, v_heads(heads)), stream);
  const auto norms = [&] {
    apply(a.q_norm, layer, qkv, q_heads(heads), stream);
    if (a.takes_kv >= 0) return;
    apply(a.k_norm, layer, qkv, k_heads(heads), stream);
    apply(a.v_norm, layer, qkv, v_heads(heads), stream);
  };
  if (!a.norms_after_rope && (a.q_norm || a.k_norm || a.v_norm)) norms();
  if (a.rope.enabled)
    rope(qkv, heads, tables.inverse_frequencies, a.rope.amplitude, a.rope.interleaved, seqlen,
         stream);
  if (a.norms_after_rope) norms();
  if (!tables.query_scale.empty())
    scale_rows(columns_of(qkv, q_heads(heads)), tables.query_scale, stream);
  if (a.shares_kv()) {
    const Tensor kv = qkv.col_range(heads.k_begin, a.kv_width());
    if (a.keeps_kv >= 0) convert(kv, carried.col_range(a.keeps_kv, a.kv_width()), stream);
    if (a.takes_kv >= 0) convert(carried.col_range(a.takes_kv, a.kv_width()), kv, stream);
  }
  AttentionOptions options;
  options.scale = a.scale;
  options.window = a.window;
  options.chunk = a.chunk;
  options.soft_cap = a.soft_cap;
  options.key_bias = tables.key_bias;
  attention(qkv, heads, seqlen, options, y, stream);
}

}  // namespace qpipe
