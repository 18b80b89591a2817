// EXAONE 3 and 3.5: Llama under other names.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_exaone(const ConfigJson& config) {
  SizeKeys keys;
  keys.layers = {"num_layers", "num_hidden_layers"};
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias,
                            {"attn.attention.q_proj", "attn.attention.k_proj",
                             "attn.attention.v_proj", "attn.attention.out_proj"});
  attention.rope = read_rope(
      config, {.head_dim = s.head_dim, .max_positions = s.max_positions, .theta = 500000.0});
  const std::string eps =
      has_key(config, "layer_norm_epsilon") ? "layer_norm_epsilon" : "rms_norm_eps";
  const std::string activation =
      has_key(config, "activation_function") ? "activation_function" : "hidden_act";
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, eps, 1e-5);
  };

  Architecture a = decoder(config, s, "exaone", false, {"transformer.", "wte", "h", "lm_head"});
  a.head.norm = norm("transformer.ln_f");
  set_layers(a, sequential_layer(attention,
                                 gated_mlp(s, read_activation(config, activation, "silu"),
                                           read_flag(config, "mlp_bias", false),
                                           {"mlp.c_fc_0", "mlp.c_fc_1", "mlp.c_proj"}),
                                 norm("ln_1"), norm("ln_2")));
  return a;
}

}  // namespace qpipe
