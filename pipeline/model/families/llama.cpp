// Llama and Mistral: RMS norms before attention and MLP, rope, a gated MLP.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

// The same attention in every layer, but for its window.
Architecture llama_of(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                      Attention attention, const Mlp& mlp,
                      const std::vector<std::int64_t>& windows) {
  return llama_like(config, s, model_type, mlp, [&](std::int64_t l) {
    attention.window = windows.at(static_cast<std::size_t>(l));
    return attention;
  });
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
