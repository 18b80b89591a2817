// Phi (1 to 2) and Persimmon: layer norms, biases everywhere, part of each head rotated; Phi's
// attention and MLP stand side by side on one norm, Persimmon's one after the other.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

// The same norm for every q head and every k head.
void set_qk_norms(const ConfigJson& config, std::int64_t head_dim, bool absent,
                  Attention& attention) {
  if (!read_flag(config, "qk_layernorm", absent)) return;
  attention.q_norm = {layer_norm_of(config, "self_attn.q_layernorm", head_dim)};
  attention.k_norm = {layer_norm_of(config, "self_attn.k_layernorm", head_dim)};
}

RopeRule half_of_the_head(const Sizes& s) {
  return {.head_dim = s.head_dim, .max_positions = s.max_positions, .partial = true, .share = 0.5};
}

}  // namespace

Architecture read_phi(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  Attention attention =
      gqa(s, true, true,
          {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"});
  attention.rope = read_rope(config, half_of_the_head(s));
  set_qk_norms(config, s.head_dim, false, attention);

  Architecture a = decoder(config, s, "phi");
  a.head.norm = layer_norm_of(config, "model.final_layernorm", s.hidden);
  a.head.bias = true;
  set_layers(a, parallel_layer(attention,
                               plain_mlp(s, read_activation(config, "hidden_act", "gelu_new"), true,
                                         "mlp.fc1", "mlp.fc2"),
                               layer_norm_of(config, "input_layernorm", s.hidden)));
  return a;
}

Architecture read_persimmon(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 16384;
  const Sizes s = read_sizes(config, keys);
  if (s.kv_heads != s.heads)
    refuse(config, "num_key_value_heads", "must be num_attention_heads, or absent");
  Attention attention = fused_gqa(s, by_group(s.heads, s.kv_heads, s.head_dim), true, true,
                                  "self_attn.query_key_value", "self_attn.dense");
  attention.rope = read_rope(config, half_of_the_head(s));
  set_qk_norms(config, s.head_dim, true, attention);

  Architecture a = decoder(config, s, "persimmon");
  a.head.norm = layer_norm_of(config, "model.final_layernorm", s.hidden);
  set_layers(a, sequential_layer(attention,
                                 plain_mlp(s, read_activation(config, "hidden_act", "relu2"), true,
                                           "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
                                 layer_norm_of(config, "input_layernorm", s.hidden),
                                 layer_norm_of(config, "post_attention_layernorm", s.hidden)));
  return a;
}

}  // namespace qpipe
