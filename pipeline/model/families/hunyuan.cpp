// Hunyuan: Llama with norms of each q and k head after rope.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_hunyuan_dense(const ConfigJson& config) {
  SizeKeys keys;
  keys.head_dim = {"head_dim", "attention_head_dim"};
  const Sizes s = read_sizes(config, keys);
  for (const char* key : {"use_qk_norm", "use_rotary_pos_emb"}) read_one_of(config, key, {true});
  for (const char* key : {"use_cla", "mlp_bias", "add_classification_head"})
    read_one_of(config, key, {false});
  read_one_of(config, "norm_type", {"rms"});
  skip_keys(config, {"cla_share_factor", "attention_head_dim", "org_vocab_size", "dense_list",
                     "class_num", "pool_type", "im_start_id", "im_end_id", "im_newline_id",
                     "text_start_id", "text_end_id", "mask_init_id", "pad_id"});
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  const auto norm = [&](const std::string& name) {
    return HeadNorm{rms_norm_of(config, name, s.head_dim, "rms_norm_eps", 1e-5)};
  };
  attention.q_norm = norm("self_attn.query_layernorm");
  attention.k_norm = norm("self_attn.key_layernorm");
  attention.norms_after_rope = true;
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  return llama_like(config, s, "hunyuan_v1_dense",
                    gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                    [&](std::int64_t) { return attention; }, {.absent_eps = 1e-5});
}

}  // namespace qpipe
