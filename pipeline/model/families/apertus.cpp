// Apertus: Llama with norms of each q and k head, a plain MLP with xIELU, and its own names of
// norms.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_apertus(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 65536;
  const Sizes s = read_sizes(config, keys);
  read_one_of(config, "qk_norm", {true});
  skip_keys(config, {"post_norm"});
  read_one_of(config, "mlp_bias", {false});
  const auto norm = [&](const std::string& name, std::int64_t width) {
    return rms_norm_of(config, name, width, "rms_norm_eps", 1e-5);
  };
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.q_norm = {norm("self_attn.q_norm", s.head_dim)};
  attention.k_norm = {norm("self_attn.k_norm", s.head_dim)};
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.theta = 12e6;
  rule.absent = {{"rope_type", "llama3"},
                 {"factor", 8.0},
                 {"original_max_position_embeddings", 8192},
                 {"low_freq_factor", 1.0},
                 {"high_freq_factor", 4.0}};
  attention.rope = read_rope(config, rule);

  const bool xielu = read_text(config, "hidden_act", "xielu") == "xielu";
  Mlp mlp = plain_mlp(s, xielu ? Activation::silu : read_activation(config, "hidden_act", "xielu"),
                      false, "mlp.up_proj", "mlp.down_proj");
  // β and ε are stored beside them, as the constants that they are in every model.
  if (xielu) mlp.xielu = Xielu{"mlp.act_fn.alpha_p", "mlp.act_fn.alpha_n"};
  Architecture a = llama_like(config, s, "apertus", mlp, [&](std::int64_t) { return attention; },
                              {.absent_eps = 1e-5});
  for (LayerSpec& kind : a.kinds) {
    kind.mixer_norm = norm("attention_layernorm", s.hidden);
    kind.mlp_norm = norm("feedforward_layernorm", s.hidden);
  }
  return a;
}

}  // namespace qpipe
