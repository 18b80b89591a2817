// Latent attention as config.json describes it, beside readers.h.
#pragma once

#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

// What transformers' configuration class assumes without the keys q_lora_rank (null: q has no
// latent), kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim and v_head_dim.
struct LatentSizes {
  std::int64_t q_rank = 1536;
  std::int64_t kv_rank = 512;
  std::int64_t nope = 128;
  std::int64_t rope = 64;
  std::int64_t value = 128;  // 0: hidden / heads
};

// Sizes of a model whose heads are those widths: head_dim decides nothing, and every query head has
// its key.
Sizes read_latent_model_sizes(const ConfigJson& config, SizeKeys keys);

// self_attn.q_proj, or q_a_proj, q_a_layernorm and q_b_proj; kv_a_proj_with_mqa, kv_a_layernorm,
// kv_b_proj; o_proj. attention_bias: biases of q_a, kv_a and o. The norms' ε is 10⁻⁶ whatever
// rms_norm_eps says. Scores are scaled by read_score_factor / √(nope + rope). rule.head_dim: 0 for
// qk_rope_head_dim; what is rotated must be that wide.
LatentAttention read_latent_attention(const ConfigJson& config, const Sizes& sizes,
                                      const LatentSizes& absent, RopeRule rule);

// index_n_heads, index_head_dim and index_topk: self_attn.indexer.wq_b, wk, weights_proj, k_norm.
// For an attention that has a latent of q.
TokenIndexer read_token_indexer(const ConfigJson& config, const Sizes& sizes,
                                const LatentAttention& attention, std::int64_t absent_heads);

}  // namespace qpipe
