// Llama 4: layers with rope attend in chunks, the others have no positions and scale queries by
// position; experts read inputs that their weights scale, beside a shared one, in all layers or in
// some.
#include <algorithm>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

// Norms of each q and k head behind rope, without weights.
void add_weightless_norms(const ConfigJson& config, Attention& attention) {
  add_qk_norms(config, 1e-5, attention);
  attention.q_norm->norm.weight = attention.k_norm->norm.weight = false;
  attention.norms_after_rope = true;
}

using AttentionOfLayer = std::function<Attention(std::int64_t layer)>;

AttentionOfLayer llama4_attention(const ConfigJson& config, const Sizes& s) {
  const bool bias = read_flag(config, "attention_bias", false);
  Attention plain = gqa(s, bias, bias);
  Attention turned = plain;
  turned.rope = read_rope(config, {.head_dim = s.head_dim,
                                   .max_positions = s.max_positions,
                                   .interleaved = true,
                                   .theta = 5e5});
  if (read_flag(config, "use_qk_norm", true)) add_weightless_norms(config, turned);
  skip_keys(config, {"attn_scale", "floor_scale"});
  if (read_flag(config, "attn_temperature_tuning", true)) {
    plain.query_scale.beta = static_cast<float>(read_positive(config, "attn_scale", 0.1));
    plain.query_scale.positions = read_integer_or(config, "floor_scale", 8192, 1, most_positions);
    plain.query_scale.first = 1;
  }
  const std::vector<bool> ropes = read_rope_layers(config, s.layers);
  const std::int64_t chunk =
      is_null(config, "attention_chunk_size")
          ? 0
          : read_integer_or(config, "attention_chunk_size", 8192, 1, most_positions);
  const std::vector<std::string> types =
      read_layer_types(config, s.layers, {"full_attention", "chunked_attention"});
  return [=](std::int64_t l) {
    const auto at = static_cast<std::size_t>(l);
    Attention attention = ropes[at] ? turned : plain;
    if (types.empty() ? ropes[at] : types[at] == "chunked_attention") attention.chunk = chunk;
    return attention;
  };
}

// moe_layers, or each interleave_moe_layer_step-th.
std::vector<bool> llama4_routes(const ConfigJson& config, std::int64_t layers) {
  const std::int64_t step = read_integer_or(config, "interleave_moe_layer_step", 1, 1, most_layers);
  std::vector<bool> routes(static_cast<std::size_t>(layers), false);
  if (has_key(config, "moe_layers")) {
    for (const std::int64_t l : read_layer_numbers(config, "moe_layers", layers))
      routes[static_cast<std::size_t>(l)] = true;
    return routes;
  }
  for (std::int64_t l = step - 1; l < layers; l += step) routes[static_cast<std::size_t>(l)] = true;
  return routes;
}

}  // namespace

Architecture read_llama4(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 131072;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config, {"router_jitter_noise", "for_llm_compressor"});
  Sizes dense = s;
  dense.ffn = read_integer_or(config, "intermediate_size_mlp", 16384, 1, largest_width);
  const Activation activation = read_activation(config, "hidden_act", "silu");
  const MlpNames names{"feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"};
  Architecture a = llama_like(config, s, "llama4_text", gated_mlp(dense, activation, false, names),
                              llama4_attention(config, s), {.absent_eps = 1e-5});

  ExpertSizes sizes = read_expert_sizes(
      config, s, {.ffn = {"intermediate_size"}, .shared = {}, .absent_experts = 16});
  sizes.shared_ffn = sizes.ffn;
  ExpertNames of_experts;
  of_experts.router = "feed_forward.router";
  of_experts.experts = "feed_forward.experts";
  of_experts.shared = "feed_forward.shared_expert";
  Experts experts = gated_experts(sizes, activation, of_experts);
  experts.router.options.top_k = read_top_k(config, sizes.experts, "num_experts_per_tok", 1);
  experts.router.options.scoring = Scoring::logits;
  experts.scales_inputs = true;
  set_experts(a, experts, llama4_routes(config, s.layers));
  return a;
}

}  // namespace qpipe
