// InternLM 2 and Baichuan: Llama with q, k and v in one projection. InternLM 2 has them by kv head
// and its own names; Baichuan has them side by side, and ALiBi in the 13B models.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_internlm2(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  const bool bias = read_flag(config, "bias", true);
  Attention attention = fused_gqa(s, by_group(s.heads, s.kv_heads, s.head_dim), bias, bias,
                                  "attention.wqkv", "attention.wo");
  attention.rope = read_rope(config, {s.head_dim, s.max_positions});

  Architecture a =
      decoder(config, s, "internlm2", false, {"model.", "tok_embeddings", "layers", "output"});
  a.head.norm = rms_norm_of(config, "model.norm", s.hidden);
  set_layers(a,
             sequential_layer(attention,
                              gated_mlp(s, read_activation(config, "hidden_act", "silu"), false,
                                        {"feed_forward.w1", "feed_forward.w3", "feed_forward.w2"}),
                              rms_norm_of(config, "attention_norm", s.hidden),
                              rms_norm_of(config, "ffn_norm", s.hidden)));
  return a;
}

Architecture read_baichuan(const ConfigJson& config) {
  constexpr std::int64_t vocab_of_baichuan2 = 125696;
  constexpr std::int64_t hidden_of_13b = 5120;
  SizeKeys keys;
  keys.kv_heads = keys.head_dim = {};
  keys.max_positions = {"max_position_embeddings", "model_max_length"};
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  if (s.vocab == vocab_of_baichuan2)
    refuse(config, "vocab_size",
           "is that of Baichuan 2, whose output head is normalized each time it is used, which is "
           "not computed here",
           ExitCode::unavailable);
  Attention attention = fused_gqa(s, side_by_side(s.heads, s.heads, s.head_dim), false, false,
                                  "self_attn.W_pack", "self_attn.o_proj");
  // The 13B models' config.json tells of ALiBi by what it lacks: positions end nowhere.
  if (s.hidden == hidden_of_13b && has_key(config, "max_position_embeddings"))
    refuse(config, "max_position_embeddings",
           "is not a key of Baichuan-13B (hidden_size 5120), which has no rotary positions",
           ExitCode::unavailable);
  if (s.hidden == hidden_of_13b)
    attention.alibi.slopes = alibi_slopes(s.heads);
  else
    attention.rope = read_rope(config, {s.head_dim, s.max_positions});
  skip_keys(config, {"z_loss_weight"});

  Architecture a = decoder(config, s, "baichuan");
  a.head.norm = rms_norm_of(config, "model.norm", s.hidden);
  set_layers(a, sequential_layer(attention,
                                 gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                                 rms_norm_of(config, "input_layernorm", s.hidden),
                                 rms_norm_of(config, "post_attention_layernorm", s.hidden)));
  return a;
}

}  // namespace qpipe
