// Gemma 1 to 3: norms that multiply with 1 + w, an embedding scaled by √hidden, a GELU gate. Gemma
// 2 adds norms after both blocks, caps and windows; Gemma 3 norms of q and k, and rope by kind of
// layer.
#include <cmath>

#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

NormSpec gemma_norm(const ConfigJson& config, const std::string& name, std::int64_t width) {
  NormSpec norm = rms_norm_of(config, name, width);
  norm.offset = 1.0f;
  return norm;
}

SizeKeys gemma_keys(std::int64_t heads, std::int64_t kv_heads, std::int64_t positions) {
  SizeKeys keys;
  keys.absent_heads = heads;
  keys.absent_kv_heads = kv_heads;
  keys.absent_head_dim = 256;
  keys.absent_max_positions = positions;
  return keys;
}

Architecture gemma(const ConfigJson& config, const Sizes& s, const std::string& model_type) {
  read_one_of(config, "use_bidirectional_attention", {false});
  Architecture a = decoder(config, s, model_type, true);
  a.embedding.multiplier = std::sqrt(static_cast<float>(s.hidden));
  a.head.norm = gemma_norm(config, "model.norm", s.hidden);
  return a;
}

Attention gemma_attention(const ConfigJson& config, const Sizes& s) {
  const bool bias = read_flag(config, "attention_bias", false);
  return gqa(s, bias, bias);
}

float read_cap(const ConfigJson& config, const std::string& key, double absent) {
  if (is_null(config, key)) return 0.0f;
  return has_key(config, key) ? static_cast<float>(read_positive(config, key))
                              : static_cast<float>(absent);
}

// Gemma 2 and 3: caps, and norms before and after both blocks.
LayerSpec four_norms(const ConfigJson& config, const Sizes& s, double absent_cap,
                     Attention& attention) {
  attention.scale =
      static_cast<float>(1.0 / std::sqrt(read_positive(config, "query_pre_attn_scalar", 256.0)));
  attention.soft_cap = read_cap(config, "attn_logit_softcapping", absent_cap);
  skip_keys(config, {"hidden_act"});
  LayerSpec layer;
  layer.mixer_norm = gemma_norm(config, "input_layernorm", s.hidden);
  layer.after_mixer = gemma_norm(config, "post_attention_layernorm", s.hidden);
  layer.mlp_norm = gemma_norm(config, "pre_feedforward_layernorm", s.hidden);
  layer.after_mlp = gemma_norm(config, "post_feedforward_layernorm", s.hidden);
  layer.mlp =
      gated_mlp(s, read_activation(config, "hidden_activation", "gelu_pytorch_tanh"), false);
  return layer;
}

}  // namespace

Architecture read_gemma(const ConfigJson& config) {
  const Sizes s = read_sizes(config, gemma_keys(16, 16, 8192));
  Architecture a = gemma(config, s, "gemma");
  skip_keys(config, {"hidden_activation"});
  Activation activation = read_activation(config, "hidden_act", "gelu_pytorch_tanh");
  if (activation == Activation::gelu) activation = Activation::gelu_tanh;  // what it always meant
  Attention attention = gemma_attention(config, s);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  LayerSpec layer;
  layer.mixer = attention;
  layer.mixer_norm = gemma_norm(config, "input_layernorm", s.hidden);
  layer.mlp_norm = gemma_norm(config, "post_attention_layernorm", s.hidden);
  layer.mlp = gated_mlp(s, activation, false);
  set_layers(a, [&](std::int64_t) { return layer; });
  return a;
}

Architecture read_gemma2(const ConfigJson& config) {
  const Sizes s = read_sizes(config, gemma_keys(8, 4, 8192));
  Architecture a = gemma(config, s, "gemma2");
  a.head.soft_cap = read_cap(config, "final_logit_softcapping", 30.0);
  Attention attention = gemma_attention(config, s);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  LayerSpec layer = four_norms(config, s, 50.0, attention);
  const std::vector<std::int64_t> windows = windows_between(config, s.layers, 4096, 2);
  skip_keys(config, {"sliding_window_size"});
  set_layers(a, [&](std::int64_t l) {
    attention.window = windows.at(static_cast<std::size_t>(l));
    layer.mixer = attention;
    return layer;
  });
  return a;
}

Architecture read_gemma3(const ConfigJson& config) {
  SizeKeys keys = gemma_keys(8, 4, 131072);
  keys.absent_vocab = 262208;
  const Sizes s = read_sizes(config, keys);
  Architecture a = gemma(config, s, "gemma3_text");
  a.head.soft_cap = read_cap(config, "final_logit_softcapping", 0.0);
  Attention attention = gemma_attention(config, s);
  attention.q_norm = {gemma_norm(config, "self_attn.q_norm", s.head_dim)};
  attention.k_norm = {gemma_norm(config, "self_attn.k_norm", s.head_dim)};
  LayerSpec layer = four_norms(config, s, 0.0, attention);

  const std::vector<std::int64_t> windows = windows_between(
      config, s.layers, 4096, read_integer_or(config, "sliding_window_pattern", 6, 1, most_layers));
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.theta = 1e6;
  rule.layer_type = "full_attention";
  const Rope full = read_rope(config, rule);
  rule.theta = 1e4;
  rule.theta_key = "rope_local_base_freq";
  rule.layer_type = "sliding_attention";
  rule.scaled = false;
  const Rope sliding = read_rope(config, rule);
  set_layers(a, [&](std::int64_t l) {
    attention.window = windows.at(static_cast<std::size_t>(l));
    attention.rope = attention.window > 0 ? sliding : full;
    layer.mixer = attention;
    return layer;
  });
  return a;
}

}  // namespace qpipe
