// Qwen3-Next and Qwen 3.5: gated delta nets, and every few layers attention whose q_proj holds q
// and a gate for each head; (1 + w) norms; an MLP, or experts with a shared one behind a gate. A
// text has one position for time, height and width, so that mrope is the plain rope.
#include <fmt/format.h>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/families/qwen.h"

namespace qpipe {

namespace {

Sizes next_sizes(const ConfigJson& config, std::int64_t absent_kv_heads,
                 const std::string& ffn = "intermediate_size") {
  SizeKeys keys;
  keys.absent_kv_heads = absent_kv_heads;
  keys.absent_head_dim = 256;
  keys.absent_max_positions = 32768;
  keys.ffn = {ffn};
  return read_sizes(config, keys);
}

Attention next_attention(const ConfigJson& config, const Sizes& s) {
  Attention a = qwen3_attention(config, s);
  a.q_norm->norm.offset = a.k_norm->norm.offset = 1.0f;
  a.gate_beside_q = true;
  a.qkv[0].out_features *= 2;
  HeadLayout& h = a.heads;
  h.q_block = 1;
  h.q_group_stride = 2 * s.head_dim;
  h.k_begin += s.heads * s.head_dim;
  h.v_begin += s.heads * s.head_dim;
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.partial = true;
  rule.share = 0.25;
  a.rope = read_rope(config, rule);
  return a;
}

DeltaHeads read_delta_heads(const ConfigJson& config) {
  const auto width = [&](const char* key, std::int64_t absent, std::int64_t largest) {
    return read_integer_or(config, key, absent, 1, largest);
  };
  DeltaHeads h;
  h.key_heads = width("linear_num_key_heads", 16, largest_width);
  h.key_dim = width("linear_key_head_dim", 128, largest_width / h.key_heads);
  h.value_heads = width("linear_num_value_heads", 32, largest_width);
  h.value_dim = width("linear_value_head_dim", 128, largest_width / h.value_heads);
  if (h.value_heads % h.key_heads != 0)
    refuse(config, "linear_num_value_heads",
           fmt::format("must be a multiple of linear_num_key_heads = {}", h.key_heads));
  return h;
}

// What both have: convolution, decays, norm and output projection.
DeltaNet delta_net(const ConfigJson& config, const Sizes& s) {
  read_one_of(config, "hidden_act", {"silu"});  // the convolution's, too
  read_one_of(config, "attn_output_gate", {true});
  DeltaNet n;
  n.heads = read_delta_heads(config);
  n.convolutions = {{"linear_attn.conv1d", 2 * n.heads.keys() + n.heads.values(),
                     read_integer_or(config, "linear_conv_kernel_dim", 4, 1, 64)}};
  n.a_log = "linear_attn.A_log";
  n.dt_bias = "linear_attn.dt_bias";
  n.norm = "linear_attn.norm.weight";
  n.eps = static_cast<float>(read_positive(config, "rms_norm_eps", 1e-6));
  n.out = {"linear_attn.out_proj", s.hidden, n.heads.values()};
  return n;
}

SlicedColumns side_by_side(std::int64_t first, std::int64_t count) {
  return {first, {1, count, count}};
}

// in_proj_qkvz: q, k, v, z of each head of k, with the heads of v that share it; in_proj_ba alike.
DeltaNet fused_by_head(DeltaNet n, std::int64_t hidden) {
  const DeltaHeads& h = n.heads;
  const std::int64_t sharing = h.value_heads / h.key_heads;
  const std::int64_t values = sharing * h.value_dim;
  const std::int64_t stride = 2 * (h.key_dim + values);
  const std::int64_t ba = h.key_heads * stride;
  n.in = {{"linear_attn.in_proj_qkvz", ba, hidden},
          {"linear_attn.in_proj_ba", 2 * h.value_heads, hidden}};
  n.in[1].kept = true;
  const auto columns = [&](std::int64_t first, std::int64_t width, std::int64_t every) {
    return SlicedColumns{first, {h.key_heads, width, every}};
  };
  n.q = columns(0, h.key_dim, stride);
  n.k = columns(h.key_dim, h.key_dim, stride);
  n.v = columns(2 * h.key_dim, values, stride);
  n.gate = columns(2 * h.key_dim + values, values, stride);
  n.strength = columns(ba, sharing, 2 * sharing);
  n.decay = columns(ba + sharing, sharing, 2 * sharing);
  return n;
}

DeltaNet with_projections_apart(DeltaNet n, std::int64_t hidden) {
  const DeltaHeads& h = n.heads;
  const std::int64_t z = 2 * h.keys() + h.values();
  const std::int64_t b = z + h.values();
  n.in = {{"linear_attn.in_proj_qkv", z, hidden},
          {"linear_attn.in_proj_z", h.values(), hidden},
          {"linear_attn.in_proj_b", h.value_heads, hidden},
          {"linear_attn.in_proj_a", h.value_heads, hidden}};
  n.in[2].kept = n.in[3].kept = true;
  n.q = side_by_side(0, h.keys());
  n.k = side_by_side(h.keys(), h.keys());
  n.v = side_by_side(2 * h.keys(), h.values());
  n.gate = side_by_side(z, h.values());
  n.strength = side_by_side(b, h.value_heads);
  n.decay = side_by_side(b + h.value_heads, h.value_heads);
  return n;
}

// layer_types, or attention in every full_attention_interval-th layer.
std::vector<bool> attention_layers(const ConfigJson& config, std::int64_t layers) {
  const std::vector<std::string> types =
      read_layer_types(config, layers, {"linear_attention", "full_attention"});
  const std::int64_t interval =
      read_integer_or(config, "full_attention_interval", 4, 1, most_layers);
  std::vector<bool> attends;
  for (std::int64_t l = 0; l < layers; ++l)
    attends.push_back(types.empty() ? (l + 1) % interval == 0
                                    : types[static_cast<std::size_t>(l)] == "full_attention");
  return attends;
}

Architecture next_like(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                       const DeltaNet& net) {
  const Attention attention = next_attention(config, s);
  const std::vector<bool> attends = attention_layers(config, s.layers);
  Architecture a = llama_like(config, s, model_type, gated_mlp(s, Activation::silu, false),
                              [&](std::int64_t l) -> Mixer {
                                if (attends[static_cast<std::size_t>(l)]) return attention;
                                return net;
                              });
  a.kinds_by = "layer_types";
  a.head.norm->offset = 1.0f;
  for (LayerSpec& kind : a.kinds) kind.mixer_norm->offset = kind.mlp_norm->offset = 1.0f;
  return a;
}

Experts next_experts(const ConfigJson& config, const Sizes& s, std::int64_t absent_experts,
                     std::int64_t absent_top_k, bool normalized) {
  ExpertSizes sizes = read_expert_sizes(
      config, s, {.shared = {}, .absent_experts = absent_experts, .absent_ffn = 512});
  sizes.shared_ffn =
      read_integer_or(config, "shared_expert_intermediate_size", 512, 1, largest_width);
  ExpertNames names;
  names.shared = "mlp.shared_expert";
  Experts experts = gated_experts(sizes, Activation::silu, names);
  experts.shared_gate = LinearSpec{"mlp.shared_expert_gate", 1, s.hidden};
  experts.shared_gate->kept = true;
  set_softmax_router(read_top_k(config, sizes.experts, "num_experts_per_tok", absent_top_k),
                     normalized, experts);
  return experts;
}

}  // namespace

Architecture read_qwen3_next(const ConfigJson& config) {
  const Sizes s = next_sizes(config, 2);
  Architecture a =
      next_like(config, s, "qwen3_next", fused_by_head(delta_net(config, s), s.hidden));
  const bool normalized = read_flag(config, "norm_topk_prob", true);
  set_experts(a, next_experts(config, s, 512, 10, normalized), sparse_layers(config, s.layers));
  return a;
}

Architecture read_qwen3_5(const ConfigJson& config) {
  const Sizes s = next_sizes(config, 4);
  return next_like(config, s, "qwen3_5_text",
                   with_projections_apart(delta_net(config, s), s.hidden));
}

Architecture read_qwen3_5_moe(const ConfigJson& config) {
  const Sizes s = next_sizes(config, 2, "moe_intermediate_size");
  skip_keys(config, {"intermediate_size", "norm_topk_prob"});  // always normalized
  Architecture a = next_like(config, s, "qwen3_5_moe_text",
                             with_projections_apart(delta_net(config, s), s.hidden));
  set_experts(a, next_experts(config, s, 256, 8, true));
  return a;
}

}  // namespace qpipe
