// gpt-oss: windows on every second layer, sinks, biases everywhere, and experts with limits of gate
// and up, to which 1 is added.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Attention gpt_oss_attention(const ConfigJson& config, const Sizes& s) {
  const bool bias = read_flag(config, "attention_bias", true);
  Attention attention = gqa(s, bias, bias);
  attention.sinks = "self_attn.sinks";
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions, .theta = 150000.0};
  rule.absent = {{"rope_type", "yarn"},
                 {"factor", 32.0},
                 {"truncate", false},
                 {"original_max_position_embeddings", 4096}};
  attention.rope = read_rope(config, rule);
  return attention;
}

Experts gpt_oss_experts(const ConfigJson& config, const Sizes& s) {
  read_one_of(config, "hidden_act", {"silu"});  // with a factor of 1.702
  read_one_of(config, "swiglu_alpha", {1.702});
  const auto limit = static_cast<float>(read_positive(config, "swiglu_limit", 7.0));
  ExpertNames names;
  names.router = "mlp.router";
  const ExpertSizes sizes = read_expert_sizes(
      config, s, {.ffn = {"intermediate_size"}, .shared = {}, .absent_experts = 128});
  Experts experts = gated_experts(sizes, Activation::quick_gelu, names);
  experts.router.linear.bias = true;
  for (Mlp& expert : experts.experts) {
    for (LinearSpec& linear : expert.in) linear.bias = true;
    expert.out.bias = true;
    expert.limits = {.limit = limit, .up_offset = 1.0f};
  }
  const std::int64_t top_k = read_top_k(config, sizes.experts, "num_experts_per_tok", 4);
  read_one_of(config, "experts_per_token", {top_k});
  set_softmax_router(top_k, true, experts);
  return experts;
}

}  // namespace

Architecture read_gpt_oss(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_head_dim = 64;
  keys.absent_max_positions = 131072;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config, {"initial_context_length"});
  Attention attention = gpt_oss_attention(config, s);
  const std::vector<std::int64_t> windows = windows_between(config, s.layers, 128, 2);
  Architecture a = llama_like(config, s, "gpt_oss", gated_mlp(s, Activation::quick_gelu, true),
                              [&](std::int64_t l) {
                                attention.window = windows[static_cast<std::size_t>(l)];
                                return attention;
                              },
                              {.absent_eps = 1e-5});
  set_experts(a, gpt_oss_experts(config, s));
  return a;
}

}  // namespace qpipe
