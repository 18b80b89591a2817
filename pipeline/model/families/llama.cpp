// Llama and Mistral: RMS norms before attention and MLP, rope, a gated MLP.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Architecture llama_of(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                      const Attention& attention, const Mlp& mlp,
                      const std::vector<std::int64_t>& windows) {
  Architecture a = decoder(config, s, model_type);
  a.head.norm = rms_norm_of(config, "model.norm", s.hidden);
  LayerSpec layer;
  layer.mixer_norm = rms_norm_of(config, "input_layernorm", s.hidden);
  layer.mlp_norm = rms_norm_of(config, "post_attention_layernorm", s.hidden);
  layer.mlp = mlp;
  set_layers(a, [&](std::int64_t l) {
    Attention of_layer = attention;
    of_layer.window = windows.at(static_cast<std::size_t>(l));
    layer.mixer = of_layer;
    return layer;
  });
  return a;
}

}  // namespace

Architecture read_llama(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.rope = read_rope(config, {s.head_dim, s.max_positions});
  return llama_of(config, s, "llama", attention,
                  gated_mlp(s, read_activation(config, "hidden_act", "silu"),
                            read_flag(config, "mlp_bias", false)),
                  windows_of_all(config, s.layers, 0));
}

Architecture read_mistral(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 131072;
  const Sizes s = read_sizes(config, keys);
  Attention attention = gqa(s, false, false);
  attention.rope = read_rope(config, {s.head_dim, s.max_positions});
  return llama_of(config, s, "mistral", attention,
                  gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                  windows_of_all(config, s.layers, read_window(config, 4096)));
}

}  // namespace qpipe
