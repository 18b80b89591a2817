// LFM2: short convolutions with two gates in most layers, attention in some; with or without
// experts.
#include <algorithm>
#include <cmath>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

const MlpNames lfm2_mlp = {"feed_forward.w1", "feed_forward.w3", "feed_forward.w2"};

// layer_types, or the numbers of the layers with attention; without either all have it.
std::vector<bool> lfm2_attends(const ConfigJson& config, std::int64_t layers) {
  const std::vector<std::string> types =
      read_layer_types(config, layers, {"conv", "full_attention"});
  std::vector<bool> by_number(static_cast<std::size_t>(layers), !has_key(config, "full_attn_idxs"));
  for (const std::int64_t l : read_layer_numbers(config, "full_attn_idxs", layers))
    by_number[static_cast<std::size_t>(l)] = true;
  if (types.empty()) return by_number;
  std::vector<bool> by_type;
  for (const std::string& type : types) by_type.push_back(type != "conv");
  if (has_key(config, "full_attn_idxs") && by_type != by_number)
    refuse(config, "full_attn_idxs", "must name the layers that layer_types does");
  return by_type;
}

// intermediate_size is what it was before the gate took a third of it.
std::int64_t adjusted_ffn(const ConfigJson& config, std::int64_t ffn) {
  const bool adjust = read_flag(config, "block_auto_adjust_ff_dim", true);
  const double factor = is_null(config, "block_ffn_dim_multiplier")
                            ? 1.0
                            : read_positive(config, "block_ffn_dim_multiplier", 1.0);
  const std::int64_t multiple = read_integer_or(config, "block_multiple_of", 256, 1, largest_width);
  if (!adjust) return ffn;
  const double wide = std::floor(factor * static_cast<double>(2 * ffn / 3));
  if (!(wide >= 1.0 && wide <= static_cast<double>(largest_width)))
    refuse(config, "block_ffn_dim_multiplier", "leaves no width of the MLP that fits");
  return (static_cast<std::int64_t>(wide) + multiple - 1) / multiple * multiple;
}

Architecture lfm2_of(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                     const Mlp& mlp) {
  skip_keys(config, {"block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale",
                     "block_use_swiglu", "block_use_xavier_init", "conv_dim", "conv_dim_out",
                     "conv_use_xavier_init", "use_pos_enc", "num_heads"});
  Attention attention =
      gqa(s, false, false,
          {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"});
  attention.q_norm =
      HeadNorm{rms_norm_of(config, "self_attn.q_layernorm", s.head_dim, "norm_eps", 1e-5)};
  attention.k_norm =
      HeadNorm{rms_norm_of(config, "self_attn.k_layernorm", s.head_dim, "norm_eps", 1e-5)};
  attention.rope =
      read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions, .theta = 1e6});
  const bool bias = read_flag(config, "conv_bias", false);
  ShortConv conv;
  conv.in = {"conv.in_proj", 3 * s.hidden, s.hidden, bias};
  conv.out = {"conv.out_proj", s.hidden, s.hidden, bias};
  conv.conv = {"conv.conv", s.hidden, read_integer_or(config, "conv_L_cache", 3, 1, 256), bias};
  const std::vector<bool> attends = lfm2_attends(config, s.layers);
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, "norm_eps", 1e-5);
  };
  Architecture a = decoder(config, s, model_type, true);
  if (has_key(config, "tie_embedding")) a.head.tied = read_flag(config, "tie_embedding", true);
  a.head.norm = norm("model.embedding_norm");
  a.kinds_by = "layer_types or full_attn_idxs";
  set_layers(a, [&](std::int64_t l) {
    LayerSpec layer;
    layer.mixer_norm = norm("operator_norm");
    layer.mlp_norm = norm("ffn_norm");
    layer.mlp = mlp;
    if (attends[static_cast<std::size_t>(l)])
      layer.mixer = attention;
    else
      layer.mixer = conv;
    return layer;
  });
  return a;
}

SizeKeys lfm2_keys() {
  SizeKeys keys;
  keys.ffn = {"block_ff_dim", "intermediate_size"};
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 128000;
  return keys;
}

}  // namespace

Architecture read_lfm2(const ConfigJson& config) {
  Sizes s = read_sizes(config, lfm2_keys());
  skip_keys(config, {"intermediate_size"});  // where block_ff_dim counts
  s.ffn = adjusted_ffn(config, s.ffn);
  return lfm2_of(config, s, "lfm2", gated_mlp(s, Activation::silu, false, lfm2_mlp));
}

Architecture read_lfm2_moe(const ConfigJson& config) {
  const Sizes s = read_sizes(config, lfm2_keys());
  Architecture a = lfm2_of(config, s, "lfm2_moe", gated_mlp(s, Activation::silu, false, lfm2_mlp));
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.shared = {}, .absent_experts = 32, .absent_ffn = 1792});
  ExpertNames names;
  names.router = "feed_forward.gate";
  names.experts = "feed_forward.experts";
  names.each = {"w1", "w3", "w2"};
  Experts experts = gated_experts(sizes, Activation::silu, names);
  RouteOptions& o = experts.router.options;
  o.top_k = read_top_k(config, sizes.experts, "num_experts_per_tok", 4);
  o.scoring = Scoring::sigmoid;
  o.normalize = read_flag(config, "norm_topk_prob", true);
  o.normalize_eps = 1e-6f;
  o.scaling = static_cast<float>(read_positive(config, "routed_scaling_factor", 1.0));
  if (read_flag(config, "use_expert_bias", true))
    experts.router.correction = "feed_forward.expert_bias";
  const std::int64_t dense = read_integer_or(config, "num_dense_layers", 2, 0, most_layers);
  set_experts(a, experts, [&](std::int64_t l) { return l >= dense; });
  return a;
}

}  // namespace qpipe
