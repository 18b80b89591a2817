// Granite: Llama with factors for the embedding, the scores, what is added to the residual stream,
// and the logits; with or without experts and Mamba-2. HyperCLOVA X is Granite with norms after
// both blocks.
#include <algorithm>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/mamba_readers.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

float read_multiplier(const ConfigJson& config, const std::string& key) {
  return static_cast<float>(read_positive(config, key, 1.0));
}

Attention granite_attention(const ConfigJson& config, const Sizes& s) {
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.scale = read_multiplier(config, "attention_multiplier");
  return attention;
}

Architecture granite_of(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                        const std::function<Mixer(std::int64_t layer)>& mixer, const Mlp& mlp) {
  Architecture a = llama_like(config, s, model_type, mlp, mixer);
  a.embedding.multiplier = read_multiplier(config, "embedding_multiplier");
  a.head.multiplier = 1.0f / read_multiplier(config, "logits_scaling");
  for (LayerSpec& kind : a.kinds)
    kind.residual_multiplier = read_multiplier(config, "residual_multiplier");
  return a;
}

Architecture granite_of(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                        const Attention& attention, const Mlp& mlp) {
  return granite_of(
      config, s, model_type, [&](std::int64_t) { return attention; }, mlp);
}

// Experts in stacks, the router's weights normalized.
Experts granite_experts(const ConfigJson& config, const Sizes& s, Activation activation) {
  const ExpertSizes sizes = read_expert_sizes(
      config, s, {.ffn = {"intermediate_size"}, .shared = {}, .absent_experts = 8});
  ExpertNames names;
  names.router = "block_sparse_moe.router.layer";
  names.experts = "block_sparse_moe.experts";
  Experts experts = gated_experts(sizes, activation, names);
  set_softmax_router(read_top_k(config, sizes.experts, "num_experts_per_tok", 2), true, experts);
  return experts;
}

// Which layers attend; without a list none do.
std::vector<bool> granite_attends(const ConfigJson& config, std::int64_t layers) {
  const std::vector<std::string> known{"attention", "full_attention", "mamba", "linear_attention"};
  std::vector<std::string> types = read_layer_types(config, layers, known);
  const std::vector<std::string> older =
      read_layer_types(config, layers, known, "layers_block_type");
  if (types.empty()) types = older;
  if (!older.empty() && older != types)
    refuse(config, "layers_block_type", "must say what layer_types does");
  std::vector<bool> attends(static_cast<std::size_t>(layers), false);
  for (std::size_t l = 0; l < types.size(); ++l) attends[l] = types[l].ends_with("attention");
  return attends;
}

}  // namespace

Architecture read_granite(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  Attention attention = granite_attention(config, s);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  return granite_of(config, s, "granite", attention,
                    gated_mlp(s, read_activation(config, "hidden_act", "silu"),
                              read_flag(config, "mlp_bias", false)));
}

Architecture read_granitemoe(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  Attention attention = granite_attention(config, s);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  const Activation activation = read_activation(config, "hidden_act", "silu");
  Architecture a = granite_of(config, s, "granitemoe", attention, gated_mlp(s, activation, false));
  set_experts(a, granite_experts(config, s, activation));
  return a;
}

// Granite 4: Mamba-2 in most layers; an MLP, or experts beside it.
Architecture read_granite_hybrid(const ConfigJson& config) {
  SizeKeys keys;
  keys.ffn = {"shared_intermediate_size"};
  const Sizes s = read_sizes(config, keys);
  const bool routes = read_integer_or(config, "num_local_experts", 8, 0, most_layers) > 0;
  if (!routes) skip_keys(config, {"intermediate_size", "num_experts_per_tok"});
  skip_keys(config, {"mamba_chunk_size", "time_step_min", "time_step_max", "time_step_floor"});
  read_one_of(config, "normalization_function", {"rmsnorm"});
  Attention attention = granite_attention(config, s);
  if (read_one_of(config, "position_embedding_type", {nullptr, "rope", "nope"}) == "rope")
    attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  else
    skip_keys(config, {"rope_theta", "rope_scaling", "rope_parameters"});
  const std::vector<bool> attends = granite_attends(config, s.layers);
  Mamba2Keys mamba_keys;
  mamba_keys.absent_eps = 1e-6;
  Mamba2 mamba;
  if (std::find(attends.begin(), attends.end(), false) != attends.end()) {
    mamba = read_mamba2_mixer(config, s, "mamba", mamba_keys);
    read_time_step_limit(config, mamba);
  } else {
    skip_keys(config,
              {"mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv",
               "mamba_expand", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit"});
  }
  const Activation activation = read_activation(config, "hidden_act", "silu");
  const Mlp mlp =
      fused_gated_mlp(s, activation, false, "shared_mlp.input_linear", "shared_mlp.output_linear");
  Architecture a = granite_of(
      config, s, "granitemoehybrid",
      [&](std::int64_t l) -> Mixer {
        if (attends[static_cast<std::size_t>(l)]) return attention;
        return mamba;
      },
      mlp);
  a.kinds_by = "layer_types";
  if (!routes) return a;
  Experts experts = granite_experts(config, s, activation);
  experts.shared = mlp;
  set_experts(a, experts);
  return a;
}

Architecture read_hyperclovax(const ConfigJson& config) {
  const Sizes s = read_sizes(config);
  Attention attention = granite_attention(config, s);
  if (find_value(config, "attention_multiplier") == nullptr)
    attention.scale = gqa(s, false, false).scale;
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  Architecture a = granite_of(config, s, "hyperclovax", attention,
                              gated_mlp(s, read_activation(config, "hidden_act", "silu"),
                                        read_flag(config, "mlp_bias", false)));
  a.head.multiplier = read_multiplier(config, "logits_scaling");  // Granite divides by it
  if (read_flag(config, "use_post_norm", true))
    for (LayerSpec& kind : a.kinds) {
      kind.after_mixer = rms_norm_of(config, "post_norm1", s.hidden);
      kind.after_mlp = rms_norm_of(config, "post_norm2", s.hidden);
    }
  return a;
}

}  // namespace qpipe
