// Hunyuan: Llama with norms of each q and k head after rope; with experts beside a shared one,
// whose numbers and widths may be given for each layer.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Sizes hunyuan_sizes(const ConfigJson& config) {
  SizeKeys keys;
  keys.head_dim = {"head_dim", "attention_head_dim"};
  return read_sizes(config, keys);
}

Architecture hunyuan(const ConfigJson& config, const Sizes& s, const std::string& model_type) {
  for (const char* key : {"use_qk_norm", "use_rotary_pos_emb"}) read_one_of(config, key, {true});
  for (const char* key : {"use_cla", "mlp_bias", "add_classification_head"})
    read_one_of(config, key, {false});
  read_one_of(config, "norm_type", {"rms"});
  skip_keys(config, {"cla_share_factor", "attention_head_dim", "org_vocab_size", "dense_list",
                     "class_num", "pool_type", "im_start_id", "im_end_id", "im_newline_id",
                     "text_start_id", "text_end_id", "mask_init_id", "pad_id"});
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  add_qk_norms(config, 1e-5, attention, HeadNorm::Weight::shared,
               {"self_attn.query_layernorm", "self_attn.key_layernorm"});
  attention.norms_after_rope = true;
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  return llama_like(config, s, model_type,
                    gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                    [&](std::int64_t) { return attention; }, {.absent_eps = 1e-5});
}

}  // namespace

Architecture read_hunyuan_dense(const ConfigJson& config) {
  return hunyuan(config, hunyuan_sizes(config), "hunyuan_v1_dense");
}

Architecture read_hunyuan_moe(const ConfigJson& config) {
  const Sizes s = hunyuan_sizes(config);
  for (const char* key : {"use_mixed_mlp_moe", "norm_topk_prob"}) read_one_of(config, key, {true});
  for (const char* key : {"use_mla", "moe_layer_num_skipped", "group_limited_greedy",
                          "position_embedding_xdrope", "routed_scaling_factor"})
    read_one_of(config, key, {false, 0});
  skip_keys(config, {"moe_drop_tokens", "moe_random_routing_dropped_token", "capacity_factor",
                     "num_media_embeds", "eod_token_id"});
  Architecture a = hunyuan(config, s, "hunyuan_v1_moe");
  const ExpertSizes all =
      read_expert_sizes(config, s, {.ffn = {"intermediate_size"}, .shared = {}});
  const auto of_layers = [&](const char* key, std::int64_t absent, std::int64_t highest) {
    return read_for_layers(config, key, s.layers, absent, 1, highest);
  };
  const auto ffn = of_layers("moe_intermediate_size", all.ffn, largest_width);
  const auto shared = of_layers("num_shared_expert", 1, largest_width / all.ffn);
  const auto top_k = of_layers("moe_topk", 1, all.experts);
  ExpertNames names;
  names.router = "mlp.gate.wg";
  names.shared = "mlp.shared_mlp";
  set_experts(a, [&](std::int64_t l) {
    const auto at = static_cast<std::size_t>(l);
    Experts experts = gated_experts({s.hidden, all.experts, ffn[at], shared[at] * all.ffn},
                                    read_activation(config, "hidden_act", "silu"), names);
    set_softmax_router(top_k[at], true, experts);
    return experts;
  });
  return a;
}

}  // namespace qpipe
