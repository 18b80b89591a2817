// StableLM: Llama with layer norms and part of each head rotated. StableLM 2 12B puts attention and
// MLP side by side on one norm and has a norm of its own for each q and k head.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_stablelm(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 32;
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  Attention attention = gqa(s, read_flag(config, "use_qkv_bias", false), false);
  attention.rope = read_rope(
      config,
      {.head_dim = s.head_dim, .max_positions = s.max_positions, .partial = true, .share = 0.25});
  if (read_flag(config, "qk_layernorm", false)) {
    const auto norms = [&](const std::string& name) {
      return HeadNorm{layer_norm_of(config, name, s.head_dim, "layer_norm_eps", 1e-5, false),
                      HeadNorm::Weight::modules};
    };
    attention.q_norm = norms("self_attn.q_layernorm");
    attention.k_norm = norms("self_attn.k_layernorm");
  }
  const Mlp mlp = gated_mlp(s, read_activation(config, "hidden_act", "silu"), false);
  const NormSpec norm = layer_norm_of(config, "input_layernorm", s.hidden);

  Architecture a = decoder(config, s, "stablelm");
  a.head.norm = layer_norm_of(config, "model.norm", s.hidden);
  if (read_flag(config, "use_parallel_residual", false))
    set_layers(a, parallel_layer(attention, mlp, norm));
  else
    set_layers(a, sequential_layer(attention, mlp, norm,
                                   layer_norm_of(config, "post_attention_layernorm", s.hidden)));
  return a;
}

}  // namespace qpipe
