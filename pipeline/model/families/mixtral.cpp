// Mixtral, MiniMax-M2 and Phi-3.5-MoE: Llama with experts in every layer, under names of their own.
// Phi has layer norms and chooses two experts by a softmax each.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

ExpertNames block_sparse_names() {
  ExpertNames names;
  names.router = "block_sparse_moe.gate";
  names.experts = "block_sparse_moe.experts";
  names.each = {"w1", "w3", "w2"};
  return names;
}

// MiniMax's list of softmax attention (1) and linear attention (0).
void check_attention_types(const ConfigJson& config, std::int64_t layers) {
  const std::string key = "attn_type_list";
  for (const std::int64_t type : read_for_layers(config, key, layers, 1, 0, 1))
    if (type != 1)
      refuse(config, key, "must be 1 for each layer: linear attention is not computed here",
             ExitCode::unavailable);
}

// Twice the noise that scores were trained with.
float read_threshold(const ConfigJson& config) {
  const std::string key = "router_jitter_noise";
  const auto* noise = find_value(config, key);
  if (noise != nullptr && *noise == 0) return 0.0f;
  return 2.0f * static_cast<float>(read_positive(config, key, 0.01));
}

}  // namespace

Architecture read_mixtral(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 131072;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config, {"router_jitter_noise"});  // of training
  Attention attention = gqa(s, false, false);
  attention.window = windows_of_all(config, s.layers, read_window(config, 0)).front();
  attention.rope =
      read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions, .theta = 1e6});
  const Activation activation = read_activation(config, "hidden_act", "silu");
  Architecture a = llama_like(config, s, "mixtral", gated_mlp(s, activation, false),
                              [&](std::int64_t) { return attention; }, {.absent_eps = 1e-5});
  const ExpertSizes sizes = read_expert_sizes(
      config, s, {.ffn = {"intermediate_size"}, .shared = {}, .absent_experts = 8});
  Experts experts = gated_experts(sizes, activation, block_sparse_names());
  set_softmax_router(read_top_k(config, sizes.experts, "num_experts_per_tok", 2), true, experts);
  set_experts(a, experts);
  return a;
}

Architecture read_minimax_m2(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 196608;
  const Sizes s = read_sizes(config, keys);
  for (const char* key : {"use_qk_norm", "use_routing_bias"}) read_one_of(config, key, {true});
  for (const char* key : {"attention_bias", "shared_intermediate_size"})
    read_one_of(config, key, {false, 0});
  for (const char* key : {"layernorm_full_attention_beta", "layernorm_mlp_beta"})
    read_one_of(config, key, {1.0});
  read_one_of(config, "qk_norm_type", {"per_layer"});
  read_one_of(config, "sliding_window", {nullptr});
  check_attention_types(config, s.layers);
  skip_keys(config, {"router_jitter_noise", "layernorm_linear_attention_beta", "shared_moe_mode",
                     "mlp_intermediate_size", "use_mtp", "num_mtp_modules",
                     "mtp_transformer_layers", "max_model_len"});
  Attention attention = gqa(s, false, false);
  add_qk_norms(config, 1e-6, attention, HeadNorm::Weight::whole);
  const auto rotated = read_integer_or(config, "rotary_dim", s.head_dim, 2, s.head_dim);
  attention.rope =
      read_rope(config, {.head_dim = s.head_dim,
                         .max_positions = s.max_positions,
                         .partial = true,
                         .share = static_cast<double>(rotated) / static_cast<double>(s.head_dim),
                         .theta = 5e6});
  Architecture a = llama_like(config, s, "minimax_m2",
                              gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                              [&](std::int64_t) { return attention; });
  const ExpertSizes sizes = read_expert_sizes(
      config, s, {.ffn = {"intermediate_size"}, .shared = {}, .absent_experts = 256});
  SigmoidRouter router;
  router.correction = "block_sparse_moe.e_score_correction_bias";
  set_experts(a, sigmoid_experts(config, sizes, 8, router, block_sparse_names()));
  return a;
}

Architecture read_phimoe(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 131072;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config, {"input_jitter_noise"});  // of training
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.window = windows_of_all(config, s.layers, read_window(config, 0)).front();
  attention.rope =
      read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions, .theta = 1e6});
  const auto norm = [&](const std::string& name) {
    return layer_norm_of(config, name, s.hidden, "rms_norm_eps");
  };
  const Activation activation = read_activation(config, "hidden_act", "silu");
  Architecture a = decoder(config, s, "phimoe");
  a.head.norm = norm("model.norm");
  a.head.bias = read_flag(config, "lm_head_bias", false);
  set_layers(a, sequential_layer(attention, gated_mlp(s, activation, false),
                                 norm("input_layernorm"), norm("post_attention_layernorm")));

  const ExpertSizes sizes = read_expert_sizes(
      config, s, {.ffn = {"intermediate_size"}, .shared = {}, .absent_experts = 16});
  Experts experts = gated_experts(sizes, activation, block_sparse_names());
  read_one_of(config, "num_experts_per_tok", {2});
  if (sizes.experts < 2) refuse(config, "num_local_experts", "must be at least 2");
  experts.router.options.top_k = 2;
  experts.router.options.scoring = Scoring::sparse_mixer;
  experts.router.options.threshold = read_threshold(config);
  set_experts(a, experts);
  return a;
}

}  // namespace qpipe
