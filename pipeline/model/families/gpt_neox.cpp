// GPT-NeoX (Pythia, Dolly, RedPajama, StableLM alpha): q, k and v of each head in one projection,
// part of each head rotated; attention and MLP side by side with a norm for each, or in sequence.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_gpt_neox(const ConfigJson& config) {
  SizeKeys keys;
  keys.kv_heads = {};
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "attention_bias", true);
  Attention attention = fused_gqa(s, by_group(s.heads, s.heads, s.head_dim), bias, bias,
                                  "attention.query_key_value", "attention.dense");
  attention.rope = read_rope(config, {.head_dim = s.head_dim,
                                      .max_positions = s.max_positions,
                                      .partial = true,
                                      .share = 0.25,
                                      .share_key = "rotary_pct",
                                      .theta_key = "rotary_emb_base"});

  Architecture a =
      decoder(config, s, "gpt_neox", false, {"gpt_neox.", "embed_in", "layers", "embed_out"});
  a.head.norm = layer_norm_of(config, "gpt_neox.final_layer_norm", s.hidden);
  LayerSpec layer = sequential_layer(attention,
                                     plain_mlp(s, read_activation(config, "hidden_act", "gelu"),
                                               true, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
                                     layer_norm_of(config, "input_layernorm", s.hidden),
                                     layer_norm_of(config, "post_attention_layernorm", s.hidden));
  if (read_flag(config, "use_parallel_residual", true)) layer.residual = Residual::parallel;
  set_layers(a, layer);
  return a;
}

}  // namespace qpipe
