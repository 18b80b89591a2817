// ERNIE 4.5: Llama with heads turned in pairs of neighbours; with experts in some layers, chosen by
// corrected softmax, beside shared ones.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Architecture ernie4_5(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                      bool bias) {
  read_one_of(config, "compression_ratio", {1.0});
  Attention attention = gqa(s, bias, bias);
  attention.rope = read_rope(config, {.head_dim = s.head_dim,
                                      .max_positions = s.max_positions,
                                      .interleaved = true,
                                      .theta = 500000.0});
  return llama_like(
      config, s, model_type, gated_mlp(s, read_activation(config, "hidden_act", "silu"), bias),
      [&](std::int64_t) { return attention; }, {.absent_eps = 1e-5, .tied_when_absent = true});
}

// Every moe_layer_interval-th layer from moe_layer_start_index to moe_layer_end_index, −1 for the
// last one.
std::vector<bool> ernie_routes(const ConfigJson& config, std::int64_t layers) {
  const std::int64_t first = read_integer_or(config, "moe_layer_start_index", 1, 0, most_layers);
  const std::int64_t end = read_integer_or(config, "moe_layer_end_index", -1, -1, most_layers);
  const std::int64_t step = read_integer_or(config, "moe_layer_interval", 1, 1, most_layers);
  std::vector<bool> routes;
  for (std::int64_t l = 0; l < layers; ++l)
    routes.push_back((l + 1) % step == 0 && l >= first && (end == -1 || l <= end));
  return routes;
}

}  // namespace

Architecture read_ernie4_5(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 2;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 131072;
  return ernie4_5(config, read_sizes(config, keys), "ernie4_5",
                  read_flag(config, "use_bias", false));
}

Architecture read_ernie4_5_moe(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 4;
  keys.absent_max_positions = 131072;
  const Sizes s = read_sizes(config, keys);
  read_one_of(config, "use_bias", {false});
  read_one_of(config, "moe_gate", {"topk"});
  read_one_of(config, "moe_use_aux_free", {true});
  // A bound of the sum of the chosen probabilities, which is never near it.
  skip_keys(config, {"moe_norm_min", "moe_capacity", "moe_gate_act", "multi_token_pred_lambda"});
  Architecture a = ernie4_5(config, s, "ernie4_5_moe", false);
  const ExpertSizes sizes = read_expert_sizes(config, s,
                                              {.experts = {"moe_num_experts", "num_experts"},
                                               .shared = {"moe_num_shared_experts"},
                                               .absent_experts = 64,
                                               .absent_ffn = 1536,
                                               .absent_shared = 2});
  Experts experts = gated_experts(sizes, read_activation(config, "hidden_act", "silu"));
  experts.router.correction = "mlp.moe_statics.e_score_correction_bias";
  set_softmax_router(read_top_k(config, sizes.experts, "moe_k", 6), true, experts);
  set_experts(a, experts, ernie_routes(config, s.layers));
  return a;
}

}  // namespace qpipe
