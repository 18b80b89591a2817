// Command: one layer norm without bias for attention and MLP side by side, pairs of columns next to
// each other rotated, scaled logits. Command R7B and A (cohere2) have windows, and positions on the
// layers with a window alone.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Architecture cohere(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                    Attention attention, double theta, const std::vector<std::int64_t>& windows,
                    bool rope_on_full) {
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.interleaved = true;
  rule.theta = theta;
  const Rope rope = read_rope(config, rule);
  const auto norm = [&](const std::string& name) {
    return layer_norm_of(config, name, s.hidden, "layer_norm_eps", 1e-5, false);
  };
  Architecture a = decoder(config, s, model_type, true);
  a.head.norm = norm("model.norm");
  a.head.multiplier = static_cast<float>(read_positive(config, "logit_scale", 0.0625));
  LayerSpec layer;
  layer.mixer_norm = norm("input_layernorm");
  layer.mlp = gated_mlp(s, read_activation(config, "hidden_act", "silu"), false);
  layer.residual = Residual::parallel;
  set_layers(a, [&](std::int64_t l) {
    attention.window = windows.at(static_cast<std::size_t>(l));
    attention.rope = rope_on_full || attention.window > 0 ? rope : Rope{};
    layer.mixer = attention;
    return layer;
  });
  return a;
}

Attention cohere_attention(const ConfigJson& config, const Sizes& s) {
  const bool bias = read_flag(config, "attention_bias", false);
  return gqa(s, bias, bias);
}

}  // namespace

Architecture read_cohere(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 8192;
  const Sizes s = read_sizes(config, keys);
  Attention attention = cohere_attention(config, s);
  if (read_flag(config, "use_qk_norm", false)) {
    const auto norm = [&](const std::string& name) {
      return HeadNorm{layer_norm_of(config, name, s.head_dim, "layer_norm_eps", 1e-5, false),
                      HeadNorm::Weight::per_head};
    };
    attention.q_norm = norm("self_attn.q_norm");
    attention.k_norm = norm("self_attn.k_norm");
  }
  return cohere(config, s, "cohere", attention, 500000.0, windows_of_all(config, s.layers, 0),
                true);
}

Architecture read_cohere2(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 8192;
  const Sizes s = read_sizes(config, keys);
  read_one_of(config, "use_qk_norm", {false});
  read_one_of(config, "position_embedding_type", {"rope_gptj"});
  read_one_of(config, "rotary_pct", {1.0});
  read_one_of(config, "order_of_interleaved_layers", {"local_attn_first"});
  for (const char* key : {"use_parallel_block", "use_gated_activation", "use_embedding_sharing"})
    read_one_of(config, key, {true});
  skip_keys(config, {"use_parallel_embedding", "layer_switch"});
  const std::int64_t pattern = read_integer_or(config, "sliding_window_pattern", 4, 1, most_layers);
  return cohere(config, s, "cohere2", cohere_attention(config, s), 10000.0,
                windows_between(config, s.layers, 4096, pattern), false);
}

}  // namespace qpipe
