// OLMo: layer norms without weights before both blocks, and clipped q, k and v. OLMo 2 and 3 and
// EXAONE 4 norm what the blocks give instead of what they read, and norm q and k.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

using Windows = std::vector<std::int64_t>;

// Layers with their norms after the blocks; windows and ropes by layer.
Architecture norms_after(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                         Attention attention, const Windows& windows, const Rope& full,
                         const Rope& sliding) {
  Architecture a = decoder(config, s, model_type);
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, "rms_norm_eps", 1e-5);
  };
  a.head.norm = norm("model.norm");
  LayerSpec layer;
  layer.after_mixer = norm("post_attention_layernorm");
  layer.after_mlp = norm("post_feedforward_layernorm");
  layer.mlp = gated_mlp(s, read_activation(config, "hidden_act", "silu"), false);
  set_layers(a, [&](std::int64_t l) {
    attention.window = windows.at(static_cast<std::size_t>(l));
    attention.rope = attention.window > 0 ? sliding : full;
    layer.mixer = attention;
    return layer;
  });
  return a;
}

// Norms over all heads together.
Attention olmo2_attention(const ConfigJson& config, const Sizes& s) {
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  const auto norm = [&](const std::string& name, std::int64_t heads) {
    return HeadNorm{rms_norm_of(config, name, heads * s.head_dim, "rms_norm_eps", 1e-5),
                    HeadNorm::Weight::whole};
  };
  attention.q_norm = norm("self_attn.q_norm", s.heads);
  attention.k_norm = norm("self_attn.k_norm", s.kv_heads);
  return attention;
}

// sliding_window_pattern: full attention on every n-th layer, or letters, L for a window, that are
// repeated; the last layer is then full.
Windows exaone4_windows(const ConfigJson& config, std::int64_t layers) {
  const std::string key = "sliding_window_pattern";
  const auto* letters = find_value(config, key);
  if (is_null(config, "sliding_window"))
    return windows_between(config, layers, 0, [](std::int64_t) { return true; });
  if (letters == nullptr || !letters->is_string())
    return windows_between(config, layers, 4096, read_integer_or(config, key, 4, 1, most_layers));
  const auto pattern = letters->get<std::string>();
  if (pattern.empty() || pattern.find_first_not_of("LG") != std::string::npos)
    refuse(config, key, "must be a number, or letters L and G");
  return windows_between(config, layers, 4096, [&](std::int64_t l) {
    return l == layers - 1 || pattern[static_cast<std::size_t>(l) % pattern.size()] == 'G';
  });
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
  const Rope rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  return norms_after(config, s, "olmo2", olmo2_attention(config, s),
                     windows_of_all(config, s.layers, 0), rope, rope);
}

Architecture read_olmo3(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.theta = 500000.0;
  rule.layer_type = "full_attention";
  const Rope full = read_rope(config, rule);
  rule.layer_type = "sliding_attention";
  rule.scaled = false;
  return norms_after(config, s, "olmo3", olmo2_attention(config, s),
                     windows_between(config, s.layers, 4096, 4), full, read_rope(config, rule));
}

// With windows, the layers without one have no positions.
Architecture read_exaone4(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 32;
  const Sizes s = read_sizes(config, keys);
  Attention attention = gqa(s, false, false);
  attention.q_norm = {rms_norm_of(config, "self_attn.q_norm", s.head_dim, "rms_norm_eps", 1e-5)};
  attention.k_norm = {rms_norm_of(config, "self_attn.k_norm", s.head_dim, "rms_norm_eps", 1e-5)};
  const Rope rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  const bool has_windows = !is_null(config, "sliding_window");
  return norms_after(config, s, "exaone4", attention, exaone4_windows(config, s.layers),
                     has_windows ? Rope{} : rope, rope);
}

}  // namespace qpipe
