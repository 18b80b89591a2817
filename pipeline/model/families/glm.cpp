// GLM-4: Llama with half of each head turned, in pairs of neighbours, and gate and up in one
// projection; GLM-4-0414 has norms behind attention and MLP as well.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Architecture glm(const ConfigJson& config, const std::string& model_type, bool norms_behind) {
  SizeKeys keys;
  keys.absent_kv_heads = 2;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 131072;
  const Sizes s = read_sizes(config, keys);
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, "rms_norm_eps", 1.5625e-7);
  };
  Attention attention = gqa(s, read_flag(config, "attention_bias", true), false);
  attention.rope = read_rope(config, {.head_dim = s.head_dim,
                                      .max_positions = s.max_positions,
                                      .interleaved = true,
                                      .partial = true,
                                      .share = 0.5});

  Architecture a = decoder(config, s, model_type);
  a.head.norm = norm("model.norm");
  LayerSpec layer =
      sequential_layer(attention,
                       fused_gated_mlp(s, read_activation(config, "hidden_act", "silu"), false,
                                       "mlp.gate_up_proj", "mlp.down_proj"),
                       norm("input_layernorm"), norm("post_attention_layernorm"));
  if (norms_behind) {
    layer.after_mixer = norm("post_self_attn_layernorm");
    layer.after_mlp = norm("post_mlp_layernorm");
  }
  set_layers(a, layer);
  return a;
}

}  // namespace

Architecture read_glm(const ConfigJson& config) { return glm(config, "glm", false); }
Architecture read_glm4(const ConfigJson& config) { return glm(config, "glm4", true); }

}  // namespace qpipe
