// Mistral 4: latent attention with queries that grow with their position, a softmax router whose
// groups are judged by their two best experts.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/latent_readers.h"

namespace qpipe {

namespace {

// partial_rotary_factor counts of whole heads here.
RopeRule rope_rule(const ConfigJson& config, const Sizes& s, const LatentSizes& absent) {
  const std::int64_t nope =
      read_integer_or(config, "qk_nope_head_dim", absent.nope, 1, largest_width);
  const std::int64_t rope =
      read_integer_or(config, "qk_rope_head_dim", absent.rope, 1, largest_width);
  RopeRule rule;
  rule.head_dim = nope + rope;
  rule.max_positions = s.max_positions;
  rule.interleaved = read_flag(config, "rope_interleave", true);
  rule.partial = true;
  rule.share = static_cast<double>(rope) / static_cast<double>(nope + rope);
  rule.absent = {{"rope_type", "yarn"},
                 {"factor", 128.0},
                 {"mscale", 1.0},
                 {"mscale_all_dim", 1.0},
                 {"original_max_position_embeddings", 8192},
                 {"llama_4_scaling_beta", 0.1}};
  return rule;
}

Experts experts_of(const ConfigJson& config, const Sizes& s) {
  Experts experts = gated_experts(
      read_expert_sizes(config, s, {.absent_experts = 128, .absent_ffn = 2048, .absent_shared = 1}),
      read_activation(config, "hidden_act", "silu"));
  const auto count = static_cast<std::int64_t>(experts.experts.size());
  set_softmax_router(read_top_k(config, count, "num_experts_per_tok", 4),
                     read_flag(config, "norm_topk_prob", true), experts);
  RouteOptions& o = experts.router.options;
  o.scaling = static_cast<float>(read_positive(config, "routed_scaling_factor", 1.0));
  o.group_score = GroupScore::two_best;
  read_expert_groups(config, count, 1, 1, o);
  return experts;
}

}  // namespace

Architecture read_mistral4(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 1048576;
  const Sizes s = read_latent_model_sizes(config, keys);
  LatentSizes absent;
  absent.q_rank = 1024;
  absent.kv_rank = 256;
  absent.nope = 64;
  const RopeRule rule = rope_rule(config, s, absent);
  LatentAttention attention = read_latent_attention(config, s, absent, rule);
  attention.query_scale = read_query_scale(config, rule);
  Architecture a = llama_like(config, s, "mistral4",
                              gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                              [&](std::int64_t) { return attention; });
  set_experts_behind_dense(config, experts_of(config, s), 0, a);
  return a;
}

}  // namespace qpipe
