// OLMo (the first): Llama with layer norms that have no weights, and q, k and v cut to ±clip_qkv.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_olmo(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  const auto norm = [&](const std::string& name) {
    NormSpec spec{name, s.hidden, NormKind::layer, 1e-5f};
    spec.weight = false;
    return spec;
  };
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.rope = read_rope(config, {s.head_dim, s.max_positions});
  attention.clip_qkv = read_positive_or_zero(config, "clip_qkv");

  Architecture a = decoder(config, s, "olmo");
  a.head.norm = norm("model.norm");
  set_layers(a, sequential_layer(attention,
                                 gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                                 norm("input_layernorm"), norm("post_attention_layernorm")));
  return a;
}

}  // namespace qpipe
