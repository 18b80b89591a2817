// Ling and Ring: Llama with q, k and v in one projection and shared experts. The first ones choose
// by softmax; Ling 2.0 has DeepSeek-V3's router, norms of q and k, and turns a part of each head.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

void refuse_other_forms(const ConfigJson& config) {
  read_one_of(config, "use_rmsnorm", {true});
  for (const char* key : {"use_bias", "norm_softmax", "norm_head", "use_sliding_window"})
    read_one_of(config, key, {false});
  skip_keys(config,
            {"router_dtype", "sliding_window", "max_window_layers", "mtp_loss_scaling_factor",
             "multi_gate", "embedding_dropout", "output_dropout"});
}

Attention bailing_attention(const ConfigJson& config, const Sizes& s) {
  Attention attention = fused_gqa(s, side_by_side(s.heads, s.kv_heads, s.head_dim),
                                  read_flag(config, "use_qkv_bias", false), false,
                                  "attention.query_key_value", "attention.dense");
  if (read_flag(config, "use_qk_norm", false))
    add_qk_norms(config, 1e-6, attention, HeadNorm::Weight::shared,
                 {"attention.query_layernorm", "attention.key_layernorm"});
  const auto rotated = read_integer_or(config, "rotary_dim", s.head_dim, 2, s.head_dim);
  attention.rope =
      read_rope(config, {.head_dim = s.head_dim,
                         .max_positions = s.max_positions,
                         .partial = true,
                         .share = static_cast<double>(rotated) / static_cast<double>(s.head_dim)});
  return attention;
}

ExpertSizes bailing_sizes(const ConfigJson& config, const Sizes& s) {
  ExpertSizes sizes = read_expert_sizes(config, s);
  const std::int64_t shared = sizes.shared_ffn / sizes.ffn;
  if (shared > 0)
    sizes.shared_ffn = shared * read_integer_or(config, "moe_shared_expert_intermediate_size",
                                                sizes.ffn, 1, largest_width / shared);
  return sizes;
}

}  // namespace

Architecture read_bailing_moe(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 32768;
  const Sizes s = read_sizes(config, keys);
  refuse_other_forms(config);
  const Activation activation = read_activation(config, "hidden_act", "silu");

  Architecture a = decoder(config, s, "bailing_moe", false, {.embedding = "word_embeddings"});
  const auto norm = [&](const std::string& name) { return rms_norm_of(config, name, s.hidden); };
  a.head.norm = norm("model.norm");
  set_layers(a, sequential_layer(bailing_attention(config, s), gated_mlp(s, activation, false),
                                 norm("input_layernorm"), norm("post_attention_layernorm")));
  const ExpertSizes sizes = bailing_sizes(config, s);
  const bool corrected = read_flag(config, "moe_router_enable_expert_bias", false);
  Experts experts;
  if (read_one_of(config, "score_function", {"softmax", "sigmoid"}) == "sigmoid") {
    SigmoidRouter router;
    router.correction = corrected ? "mlp.gate.expert_bias" : "";
    experts = sigmoid_experts(config, sizes, 0, router);
  } else {
    for (const char* key : {"n_group", "topk_group"}) read_one_of(config, key, {1, 0});
    read_one_of(config, "routed_scaling_factor", {1.0});
    read_one_of(config, "moe_router_enable_expert_bias", {false});
    experts = gated_experts(sizes, activation);
    set_softmax_router(read_top_k(config, sizes.experts), read_flag(config, "norm_topk_prob", true),
                       experts);
  }
  set_experts(a, experts, layers_behind_dense(config, s.layers, 0));
  return a;
}

}  // namespace qpipe
