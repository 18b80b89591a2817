// Llama but for sizes, biases, windows, where positions are, or the function of the MLP.

#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Rope plain_rope(const ConfigJson& config, const Sizes& s, double theta = 10000.0) {
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.theta = theta;
  return read_rope(config, rule);
}

Mlp silu_mlp(const ConfigJson& config, const Sizes& s, const std::string& bias_key = "mlp_bias") {
  return gated_mlp(s, read_activation(config, "hidden_act", "silu"),
                   read_flag(config, bias_key, false));
}

}  // namespace

// A plain MLP with a squared ReLU.
Architecture read_arcee(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.rope = plain_rope(config, s);
  const Mlp mlp = plain_mlp(s, read_activation(config, "hidden_act", "relu2"),
                            read_flag(config, "mlp_bias", false), "mlp.up_proj", "mlp.down_proj");
  return llama_like(config, s, "arcee", mlp, [&](std::int64_t) { return attention; },
                    {.absent_eps = 1e-5});
}

// Windows on three layers of four.
Architecture read_cwm(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 131072;
  const Sizes s = read_sizes(config, keys);
  read_one_of(config, "attention_bias", {false});
  Attention attention = gqa(s, false, false);
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.theta = 1e6;
  rule.absent = {{"rope_type", "llama3"},
                 {"factor", 16.0},
                 {"original_max_position_embeddings", 8192},
                 {"low_freq_factor", 1.0},
                 {"high_freq_factor", 4.0}};
  attention.rope = read_rope(config, rule);
  const std::vector<std::int64_t> windows =
      windows_between(config, s.layers, 8192, [](std::int64_t l) { return l % 4 == 0; });
  return llama_like(config, s, "cwm", silu_mlp(config, s),
                    [&](std::int64_t l) {
                      attention.window = windows.at(static_cast<std::size_t>(l));
                      return attention;
                    },
                    {.absent_eps = 1e-5});
}

// Pairs of columns next to each other are rotated.
Architecture read_helium(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 20;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  Attention attention = gqa(s, read_flag(config, "attention_bias", false), false);
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.interleaved = true;
  rule.theta = 1e5;
  attention.rope = read_rope(config, rule);
  return llama_like(config, s, "helium", silu_mlp(config, s),
                    [&](std::int64_t) { return attention; }, {.absent_eps = 1e-8});
}

// bias is that of o and of the MLP.
Architecture read_internlm3(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 2;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 32768;
  const Sizes s = read_sizes(config, keys);
  const auto flag = [&](const char* old, const char* renamed) {
    return read_flag(config, old, false) || read_flag(config, renamed, false);
  };
  const bool qkv_bias = flag("qkv_bias", "attention_bias");
  const bool bias = flag("bias", "mlp_bias");
  Attention attention = gqa(s, qkv_bias, bias);
  attention.rope = plain_rope(config, s);
  return llama_like(config, s, "internlm3",
                    gated_mlp(s, read_activation(config, "hidden_act", "silu"), bias),
                    [&](std::int64_t) { return attention; }, {.absent_eps = 1e-5});
}

// Layer norms and a plain MLP, biases everywhere.
Architecture read_jais2(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 8192;
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "attention_bias", true);
  Attention attention = gqa(s, bias, bias);
  attention.rope = plain_rope(config, s);
  const Mlp mlp = plain_mlp(s, read_activation(config, "hidden_act", "relu2"),
                            read_flag(config, "mlp_bias", true), "mlp.up_proj", "mlp.down_proj");
  LayerSpec layer;
  layer.mixer_norm = layer_norm_of(config, "input_layernorm", s.hidden);
  layer.mlp_norm = layer_norm_of(config, "post_attention_layernorm", s.hidden);
  layer.mixer = attention;
  layer.mlp = mlp;
  Architecture a = decoder(config, s, "jais2");
  a.head.norm = layer_norm_of(config, "model.norm", s.hidden);
  set_layers(a, [&](std::int64_t) { return layer; });
  return a;
}

Architecture read_seed_oss(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 524288;
  const Sizes s = read_sizes(config, keys);
  Attention attention = gqa(s, read_flag(config, "attention_bias", true),
                            read_flag(config, "attention_out_bias", false));
  attention.rope = plain_rope(config, s);
  return llama_like(config, s, "seed_oss", silu_mlp(config, s),
                    [&](std::int64_t) { return attention; });
}

// Some layers without positions.
Architecture read_smollm3(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 4;
  keys.absent_max_positions = 32768;
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  const Rope rope = plain_rope(config, s, 2e6);

  const std::vector<bool> ropes = read_rope_layers(config, s.layers);
  std::vector<std::int64_t> windows(static_cast<std::size_t>(s.layers), 0);
  if (read_flag(config, "use_sliding_window", false) && !is_null(config, "sliding_window"))
    windows = windows_between(config, s.layers, 0,
                              [&](std::int64_t l) { return ropes[static_cast<std::size_t>(l)]; });
  else
    skip_keys(config, {"sliding_window", "layer_types"});
  return llama_like(config, s, "smollm3", silu_mlp(config, s),
                    [&](std::int64_t l) {
                      const auto index = static_cast<std::size_t>(l);
                      attention.rope = ropes[index] ? rope : Rope{};
                      attention.window = windows.at(index);
                      return attention;
                    },
                    {.tied_when_absent = true});
}

}  // namespace qpipe
