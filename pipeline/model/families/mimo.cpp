// MiMo-V2-Flash: heads of values narrower than those of q and k, scaled values, and layers with
// windows that have sinks, another number of heads and rope of their own; DeepSeek-V3's router.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Attention mimo_attention(const ConfigJson& config, const Sizes& s, bool sliding) {
  Attention attention = gqa(s, read_flag(config, "attention_bias", false), false);
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions, .partial = true};
  rule.share = 0.334;
  rule.theta = sliding ? 1e4 : 5e6;
  rule.theta_key = sliding ? "swa_rope_theta" : "rope_theta";
  rule.layer_type = sliding ? "sliding_attention" : "full_attention";
  rule.scaled = !sliding;
  attention.rope = read_rope(config, rule);
  if (!is_null(config, "attention_value_scale"))
    attention.value_scale =
        static_cast<float>(read_positive(config, "attention_value_scale", 0.707));
  if (read_flag(config, sliding ? "add_swa_attention_sink_bias" : "add_full_attention_sink_bias",
                sliding))
    attention.sinks = "self_attn.attention_sink_bias";
  return attention;
}

// Twice as many heads of keys and values, whatever swa_num_key_value_heads says.
Sizes sizes_with_windows(const ConfigJson& config, const Sizes& full) {
  read_one_of(config, "swa_num_attention_heads", {full.heads});
  read_one_of(config, "swa_head_dim", {full.head_dim});
  read_one_of(config, "swa_v_head_dim", {full.v_dim});
  skip_keys(config, {"swa_num_key_value_heads"});
  Sizes s = full;
  s.kv_heads *= 2;
  check_heads(config, s);
  return s;
}

// layer_types, hybrid_layer_pattern (1: with a window), or full on the first and each sixth layer.
// A token sees sliding_window_size tokens before it, or sliding_window tokens with itself.
std::vector<std::int64_t> mimo_windows(const ConfigJson& config, std::int64_t layers) {
  const bool listed = has_key(config, "hybrid_layer_pattern");
  const auto pattern = read_for_layers(config, "hybrid_layer_pattern", layers, 0, 0, 1);
  auto windows = windows_between(config, layers, 129, [&](std::int64_t l) {
    return listed ? pattern[static_cast<std::size_t>(l)] == 0 : l == 0 || (l + 1) % 6 == 0;
  });
  if (has_key(config, "sliding_window_size"))
    for (std::int64_t& window : windows)
      if (window > 0) window = read_integer(config, "sliding_window_size", 0, most_positions) + 1;
  return windows;
}

// mlp_layer_types, moe_layer_freq (1: experts), or all layers but the first.
std::vector<bool> mimo_routes(const ConfigJson& config, std::int64_t layers) {
  const auto listed = read_for_layers(config, "moe_layer_freq", layers, 1, 0, 1);
  if (has_key(config, "mlp_layer_types") || !has_key(config, "moe_layer_freq"))
    return layers_behind_dense(config, layers, 1);
  return {listed.begin(), listed.end()};
}

}  // namespace

Architecture read_mimo_v2_flash(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 4;
  keys.absent_head_dim = 192;
  keys.absent_max_positions = 131072;
  Sizes s = read_sizes(config, keys);
  s.v_dim = read_integer_or(config, "v_head_dim", 128, 1, largest_width);
  check_heads(config, s);
  skip_keys(config, {"attention_chunk_size", "moe_router_dtype"});
  const std::string eps =
      has_key(config, "layernorm_epsilon") ? "layernorm_epsilon" : "rms_norm_eps";
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, eps, 1e-5);
  };
  const std::vector<std::int64_t> windows = mimo_windows(config, s.layers);
  Attention sliding = mimo_attention(config, sizes_with_windows(config, s), true);
  const Attention full = mimo_attention(config, s, false);

  Architecture a = decoder(config, s, "mimo_v2_flash");
  a.head.norm = norm("model.norm");
  set_layers(a, [&](std::int64_t l) {
    sliding.window = windows[static_cast<std::size_t>(l)];
    return sequential_layer(sliding.window > 0 ? sliding : full,
                            gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                            norm("input_layernorm"), norm("post_attention_layernorm"));
  });
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.absent_experts = 256, .absent_ffn = 2048});
  set_experts(a, sigmoid_experts(config, sizes, 8), mimo_routes(config, s.layers));
  return a;
}

}  // namespace qpipe
