// Qwen 2, 3 and 3 VL with experts: softmax over all of them; Qwen 2 has a shared one behind a gate.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/families/qwen.h"

namespace qpipe {

namespace {

// The experts of the layers that route.
void add_experts(const ConfigJson& config, Experts experts, std::int64_t absent_top_k,
                 bool normalized, Architecture& a) {
  const std::int64_t top_k =
      read_top_k(config, std::ssize(experts.experts), "num_experts_per_tok", absent_top_k);
  set_softmax_router(top_k, normalized, experts);
  set_experts(a, experts, sparse_layers(config, a.layers));
}

// Every second layer of the first max_window_layers has a window where there are windows.
std::vector<std::int64_t> qwen2_moe_windows(const ConfigJson& config, std::int64_t layers) {
  const bool windows = read_flag(config, "use_sliding_window", false);
  const std::int64_t last = read_integer_or(config, "max_window_layers", 28, 0, most_positions);
  if (!windows) {
    skip_keys(config, {"sliding_window"});
    return windows_of_all(config, layers, 0);
  }
  return windows_between(config, layers, 4096,
                         [&](std::int64_t l) { return l % 2 == 1 || l >= last; });
}

}  // namespace

Architecture read_qwen2_moe(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 16;
  keys.absent_max_positions = 32768;
  const Sizes s = read_sizes(config, keys);
  Architecture a =
      qwen_like(config, s, "qwen2_moe", gqa(s, read_flag(config, "qkv_bias", true), false),
                qwen2_moe_windows(config, s.layers));
  ExpertSizes sizes =
      read_expert_sizes(config, s, {.shared = {}, .absent_experts = 60, .absent_ffn = 1408});
  sizes.shared_ffn =
      read_integer_or(config, "shared_expert_intermediate_size", 5632, 1, largest_width);
  ExpertNames names;
  names.shared = "mlp.shared_expert";
  Experts experts = gated_experts(sizes, read_activation(config, "hidden_act", "silu"), names);
  experts.shared_gate = LinearSpec{"mlp.shared_expert_gate", 1, s.hidden};
  experts.shared_gate->kept = true;
  add_experts(config, std::move(experts), 4, read_flag(config, "norm_topk_prob", false), a);
  return a;
}

Architecture read_qwen3_moe(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 4;
  keys.absent_max_positions = 32768;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config, {"sliding_window", "max_window_layers"});  // without use_sliding_window
  const std::int64_t window =
      read_flag(config, "use_sliding_window", false) ? read_window(config, 4096) : 0;
  Architecture a = qwen_like(config, s, "qwen3_moe", qwen3_attention(config, s),
                             windows_of_all(config, s.layers, window));
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.shared = {}, .absent_experts = 128, .absent_ffn = 768});
  add_experts(config, gated_experts(sizes, read_activation(config, "hidden_act", "silu")), 8,
              read_flag(config, "norm_topk_prob", false), a);
  return a;
}

Architecture read_qwen3_vl_moe(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 16;
  keys.absent_max_positions = 128000;
  const Sizes s = read_sizes(config, keys);
  Architecture a = qwen_like(config, s, "qwen3_vl_moe_text", qwen3_attention(config, s),
                             windows_of_all(config, s.layers, 0), {.theta = 5e5});
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.shared = {}, .absent_experts = 60, .absent_ffn = 1408});
  skip_keys(config, {"norm_topk_prob"});  // always normalized
  add_experts(config, gated_experts(sizes, read_activation(config, "hidden_act", "silu")), 4, true,
              a);
  return a;
}

}  // namespace qpipe
