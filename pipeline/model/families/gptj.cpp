// GPT-J and CodeGen: attention and MLP side by side on one layer norm, rotary_dim columns of each
// head turned in pairs of neighbours, a head with a bias.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Architecture gptj(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                  Attention attention) {
  read_one_of(config, "rotary", {true});
  read_one_of(config, "scale_attn_weights", {true});
  const std::int64_t rotated = has_key(config, "rotary_dim") || is_null(config, "rotary_dim")
                                   ? read_integer(config, "rotary_dim", 2, s.head_dim)
                                   : 64;
  attention.rope = read_rope(config, {rotated, s.max_positions, true});

  Architecture a = decoder(config, s, model_type, false, {"transformer.", "wte", "h", "lm_head"});
  a.head.norm = layer_norm_of(config, "transformer.ln_f", s.hidden, "layer_norm_epsilon");
  a.head.bias = true;
  set_layers(a,
             parallel_layer(attention,
                            plain_mlp(s, read_activation(config, "activation_function", "gelu_new"),
                                      true, "mlp.fc_in", "mlp.fc_out"),
                            layer_norm_of(config, "ln_1", s.hidden, "layer_norm_epsilon")));
  return a;
}

}  // namespace

Architecture read_gptj(const ConfigJson& config) {
  const Sizes s = read_gpt_sizes(config, 2048);
  return gptj(config, s, "gptj",
              gqa(s, false, false, {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"}));
}

// Four parts of a quarter of the heads each, as the model was cut for training: q, v, k.
Architecture read_codegen(const ConfigJson& config) {
  const Sizes s = read_gpt_sizes(config, 2048);
  constexpr std::int64_t parts = 4;
  if (s.heads % parts != 0)
    throw UserError(ExitCode::data, config.where + ": n_head = " + std::to_string(s.heads) +
                                        " is not a multiple of 4, the parts of qkv_proj");
  HeadLayout heads{s.heads, s.heads, s.head_dim};
  const std::int64_t part = s.hidden / parts;
  heads.q_block = heads.kv_block = s.heads / parts;
  heads.q_group_stride = heads.kv_stride = 3 * part;
  heads.v_begin = part;
  heads.k_begin = 2 * part;
  return gptj(config, s, "codegen",
              fused_gqa(s, heads, false, false, "attn.qkv_proj", "attn.out_proj"));
}

}  // namespace qpipe
