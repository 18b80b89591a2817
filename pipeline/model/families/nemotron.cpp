// Nemotron (3 and 4, Minitron): layer norms that store w − 1, squared ReLU, part of each head
// rotated.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_nemotron(const ConfigJson& config) {
  SizeKeys keys;
  keys.head_dim = {"head_dim", "kv_channels"};
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config,
            {"layer_norm_eps"});  // as some converters write it; the reference does not read it
  const auto norm = [&](const std::string& name) {
    NormSpec spec = layer_norm_of(config, name, s.hidden, "norm_eps");
    spec.offset = 1.0f;
    return spec;
  };
  const bool attention_bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, attention_bias, attention_bias);
  RopeRule rope{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rope.partial = true;
  rope.share = 0.5;
  for (const char* older : {"rope_percentage", "rope_percent"})
    if (has_key(config, older)) rope.share_key = older;
  attention.rope = read_rope(config, rope);

  Architecture a = decoder(config, s, "nemotron");
  a.head.norm = norm("model.norm");
  set_layers(a, sequential_layer(
                    attention,
                    plain_mlp(s, read_activation(config, "hidden_act", "relu2"),
                              read_flag(config, "mlp_bias", false), "mlp.up_proj", "mlp.down_proj"),
                    norm("input_layernorm"), norm("post_attention_layernorm")));
  return a;
}

}  // namespace qpipe
