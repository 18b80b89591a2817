// DeepSeek-V2 and V3 (Kimi K2, Moonlight and GigaChat 3 are V3): latent attention, and behind some
// dense layers experts with shared ones. Youtu-LLM: V3's attention with an MLP in every layer.
#include "pipeline/model/families/deepseek.h"

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/latent_readers.h"

namespace qpipe {

namespace {

Architecture latent_decoder(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                            const LatentAttention& attention, const LlamaForm& form = {}) {
  const bool bias = read_flag(config, "mlp_bias", false);
  return llama_like(
      config, s, model_type, gated_mlp(s, read_activation(config, "hidden_act", "silu"), bias),
      [&](std::int64_t) { return attention; }, form);
}

// Weights of the chosen experts are never normalized, whatever norm_topk_prob says: so does the
// reference.
void set_v2_router(const ConfigJson& config, Experts& experts) {
  const auto count = static_cast<std::int64_t>(experts.experts.size());
  read_one_of(config, "scoring_func", {"softmax"});
  read_one_of(config, "norm_topk_prob", {false});
  set_softmax_router(read_top_k(config, count), false, experts);
  RouteOptions& o = experts.router.options;
  o.scaling = static_cast<float>(read_positive(config, "routed_scaling_factor", 1.0));
  o.group_score = GroupScore::best;
  const bool grouped = read_one_of(config, "topk_method", {"greedy", "group_limited_greedy"}) ==
                       "group_limited_greedy";
  if (grouped)
    read_expert_groups(config, count, 1, 1, o);
  else
    skip_keys(config, {"n_group", "topk_group"});
}

}  // namespace

void set_deepseek_v3_experts(const ConfigJson& config, const Sizes& s, std::int64_t absent_groups,
                             std::int64_t absent_top_groups, Architecture& a) {
  read_one_of(config, "moe_layer_freq", {1});
  SigmoidRouter router;
  router.absent_groups = absent_groups;
  router.absent_top_groups = absent_top_groups;
  router.absent_scaling = 2.5;
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.absent_experts = 256, .absent_ffn = 2048, .absent_shared = 1});
  set_experts_behind_dense(config, sigmoid_experts(config, sizes, 8, router), 3, a);
}

Architecture read_deepseek_v2(const ConfigJson& config) {
  const Sizes s = read_latent_model_sizes(config, {});
  read_one_of(config, "moe_layer_freq", {1});
  Architecture a = latent_decoder(config, s, "deepseek_v2",
                                  read_latent_attention(config, s, {}, {.interleaved = true}));
  Experts experts = gated_experts(
      read_expert_sizes(config, s, {.absent_experts = 64, .absent_ffn = 1407, .absent_shared = 2}),
      read_activation(config, "hidden_act", "silu"));
  set_v2_router(config, experts);
  set_experts_behind_dense(config, experts, 0, a);
  return a;
}

Architecture read_deepseek_v3(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 4096;
  const Sizes s = read_latent_model_sizes(config, keys);
  const bool interleaved = read_flag(config, "rope_interleave", true);
  Architecture a = latent_decoder(
      config, s, "deepseek_v3", read_latent_attention(config, s, {}, {.interleaved = interleaved}));
  set_deepseek_v3_experts(config, s, 8, 4, a);
  return a;
}

Architecture read_youtu(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 131072;
  const Sizes s = read_latent_model_sizes(config, keys);
  const bool interleaved = read_flag(config, "rope_interleave", true);
  skip_keys(config, {"embedding_initializer_range"});
  return latent_decoder(config, s, "youtu",
                        read_latent_attention(config, s, {}, {.interleaved = interleaved}),
                        {.tied_when_absent = true});
}

}  // namespace qpipe
