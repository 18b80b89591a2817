// OLMo: layer norms without weights before both blocks, and clipped q, k and v. OLMo 2 and 3 norm
// what the blocks give instead of what they read, and all heads of q and of k together. OLMoE is
// Llama with such norms of q and k, and with experts.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

// Norms over all heads together.
Attention olmo2_attention(const ConfigJson& config, const Sizes& s) {
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  add_qk_norms(config, 1e-5, attention, HeadNorm::Weight::whole);
  return attention;
}

Architecture olmo2_like(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                        const std::function<Attention(std::int64_t)>& attention) {
  return norms_behind(config, s, model_type,
                      gated_mlp(s, read_activation(config, "hidden_act", "silu"), false), attention,
                      {.absent_eps = 1e-5});
}

}  // namespace

Architecture read_olmo(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  if (find_value(config, "clip_qkv") != nullptr)
    attention.clip_qkv = static_cast<float>(read_positive(config, "clip_qkv"));
  const auto norm = [&](const std::string& name) {
    return NormSpec{name, s.hidden, NormKind::layer, 1e-5f, 0.0f, false, false};
  };
  Architecture a = decoder(config, s, "olmo");
  a.head.norm = norm("model.norm");
  LayerSpec layer;
  layer.mixer_norm = norm("input_layernorm");
  layer.mlp_norm = norm("post_attention_layernorm");
  layer.mixer = attention;
  layer.mlp = gated_mlp(s, read_activation(config, "hidden_act", "silu"), false);
  set_layers(a, [&](std::int64_t) { return layer; });
  return a;
}

Architecture read_olmo2(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  Attention attention = olmo2_attention(config, s);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  attention.window = windows_of_all(config, s.layers, 0).front();
  return olmo2_like(config, s, "olmo2", [&](std::int64_t) { return attention; });
}

Architecture read_olmo3(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.theta = 500000.0;
  rule.layer_type = "full_attention";
  Attention full = olmo2_attention(config, s);
  full.rope = read_rope(config, rule);
  rule.layer_type = "sliding_attention";
  rule.scaled = false;
  Attention sliding = full;
  sliding.rope = read_rope(config, rule);
  const std::vector<std::int64_t> windows = windows_between(config, s.layers, 4096, 4);
  return olmo2_like(config, s, "olmo3", [&](std::int64_t l) {
    sliding.window = windows[static_cast<std::size_t>(l)];
    return sliding.window > 0 ? sliding : full;
  });
}

Architecture read_olmoe(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  read_one_of(config, "clip_qkv", {nullptr});  // behind the norms, where OLMo has none
  Attention attention = olmo2_attention(config, s);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  const Activation activation = read_activation(config, "hidden_act", "silu");
  Architecture a = llama_like(config, s, "olmoe", gated_mlp(s, activation, false),
                              [&](std::int64_t) { return attention; }, {.absent_eps = 1e-5});
  const ExpertSizes sizes = read_expert_sizes(
      config, s, {.ffn = {"intermediate_size"}, .shared = {}, .absent_experts = 64});
  Experts experts = gated_experts(sizes, activation);
  set_softmax_router(read_top_k(config, sizes.experts, "num_experts_per_tok", 8),
                     read_flag(config, "norm_topk_prob", false), experts);
  set_experts(a, experts);
  return a;
}

}  // namespace qpipe
