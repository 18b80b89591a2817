// GLM-4.7-Flash: DeepSeek-V3's attention with wider values, GLM-4.5's experts.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/latent_readers.h"

namespace qpipe {

Architecture read_glm4_moe_lite(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 202752;
  const Sizes s = read_latent_model_sizes(config, keys);
  LatentSizes absent;
  absent.q_rank = 768;
  absent.nope = 192;
  absent.value = 256;
  const bool interleaved = read_flag(config, "rope_interleave", true);
  const LatentAttention attention =
      read_latent_attention(config, s, absent, {.interleaved = interleaved});
  Architecture a = llama_like(config, s, "glm4_moe_lite",
                              gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                              [&](std::int64_t) { return attention; }, {.absent_eps = 1e-5});
  SigmoidRouter router;
  router.absent_scaling = 1.8;
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.absent_experts = 64, .absent_ffn = 1536, .absent_shared = 1});
  set_experts_behind_dense(config, sigmoid_experts(config, sizes, 4, router), 1, a);
  return a;
}

}  // namespace qpipe
