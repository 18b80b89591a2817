// GLM-4.5, dots.llm1 and Solar Open: Llama with DeepSeek-V3's router and shared experts, in all
// layers or behind some with an MLP. None of them turns pairs of neighbours, as GLM-4 does.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

using AttentionOfLayer = std::function<Attention(std::int64_t layer)>;

Architecture dense(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                   const AttentionOfLayer& attention, double absent_eps) {
  return llama_like(config, s, model_type,
                    gated_mlp(s, read_activation(config, "hidden_act", "silu"), false), attention,
                    {.absent_eps = absent_eps});
}

}  // namespace

Architecture read_glm4_moe(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 131072;
  const Sizes s = read_sizes(config, keys);
  Attention attention = gqa(s, read_flag(config, "attention_bias", false), false);
  if (read_flag(config, "use_qk_norm", false)) add_qk_norms(config, 1e-5, attention);
  attention.rope = read_rope(
      config,
      {.head_dim = s.head_dim, .max_positions = s.max_positions, .partial = true, .share = 0.5});
  Architecture a = dense(
      config, s, "glm4_moe", [&](std::int64_t) { return attention; }, 1e-5);
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.absent_experts = 128, .absent_ffn = 1408, .absent_shared = 1});
  set_experts(a, sigmoid_experts(config, sizes, 8), layers_behind_dense(config, s.layers, 1));
  return a;
}

Architecture read_dots1(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 32;
  const Sizes s = read_sizes(config, keys);
  read_one_of(config, "moe_layer_freq", {1});
  skip_keys(config, {"use_sliding_window"});  // sliding_window and max_window_layers count
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  add_qk_norms(config, 1e-6, attention);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  const std::int64_t full = is_null(config, "sliding_window")
                                ? s.layers
                                : read_integer_or(config, "max_window_layers", 62, 0, most_layers);
  const std::vector<std::int64_t> windows =
      windows_between(config, s.layers, 4096, [&](std::int64_t l) { return l < full; });
  Architecture a = dense(
      config, s, "dots1",
      [&](std::int64_t l) {
        attention.window = windows[static_cast<std::size_t>(l)];
        return attention;
      },
      1e-6);
  SigmoidRouter router;
  router.normalized_when_absent = false;
  const ExpertSizes sizes = read_expert_sizes(config, s, {.absent_ffn = 1408});
  set_experts(a, sigmoid_experts(config, sizes, 0, router),
              layers_behind_dense(config, s.layers, 0));
  return a;
}

Architecture read_solar_open(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 131072;
  keys.ffn = {"moe_intermediate_size"};
  const Sizes s = read_sizes(config, keys);
  read_one_of(config, "first_k_dense_replace", {0});
  read_one_of(config, "use_qk_norm", {false});
  skip_keys(config, {"intermediate_size"});  // no layer has an MLP
  Attention attention = gqa(s, read_flag(config, "attention_bias", false), false);
  attention.rope =
      read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions, .theta = 1e6});
  Architecture a = dense(
      config, s, "solar_open", [&](std::int64_t) { return attention; }, 1e-5);
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.absent_experts = 128, .absent_shared = 1});
  set_experts(a, sigmoid_experts(config, sizes, 8));
  return a;
}

}  // namespace qpipe
