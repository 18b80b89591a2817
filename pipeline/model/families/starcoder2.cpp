// StarCoder 2: layer norms, biases, rope, a window, a plain MLP.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_starcoder2(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 2;
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  read_one_of(config, "mlp_type", {"default"});
  read_one_of(config, "norm_type", {"layer_norm"});
  read_one_of(config, "scale_attn_weights", {true});
  // The public repositories repeat some keys of GPT-BigCode, which nobody reads.
  skip_keys(config, {"activation_function", "layer_norm_epsilon", "attention_softmax_in_fp32",
                     "scale_attention_softmax_in_fp32"});
  const bool bias = read_flag(config, "use_bias", true);
  const auto norm = [&](const std::string& name) {
    return layer_norm_of(config, name, s.hidden, "norm_epsilon");
  };
  Attention attention = gqa(s, bias, bias);
  attention.rope = read_rope(config, {s.head_dim, s.max_positions});
  attention.window = windows_of_all(config, s.layers, read_window(config, 0)).front();

  Architecture a = decoder(config, s, "starcoder2", true);
  a.head.norm = norm("model.norm");
  set_layers(
      a, sequential_layer(attention,
                          plain_mlp(s, read_activation(config, "hidden_act", "gelu_pytorch_tanh"),
                                    bias, "mlp.c_fc", "mlp.c_proj"),
                          norm("input_layernorm"), norm("post_attention_layernorm")));
  return a;
}

}  // namespace qpipe
