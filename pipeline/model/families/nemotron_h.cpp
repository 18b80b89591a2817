// Nemotron-H (Nemotron Nano and 3): each layer is one thing alone behind one norm: Mamba-2,
// attention without positions, an MLP with squared ReLU, or experts of such MLPs.
#include <fmt/format.h>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/mamba_readers.h"

namespace qpipe {

namespace {

Mamba2 read_nemotron_mamba(const ConfigJson& config, const Sizes& s) {
  Mamba2Keys keys;
  keys.heads = {"mamba_num_heads"};
  keys.head_dim = {"mamba_head_dim"};
  keys.groups = {"mamba_n_groups", "n_groups"};
  keys.state = {"ssm_state_size"};
  keys.kernel = {"mamba_d_conv", "conv_kernel"};
  keys.conv_bias = has_key(config, "mamba_conv_bias") ? "mamba_conv_bias" : "use_conv_bias";
  keys.in_bias = "use_bias";
  keys.out_bias = "use_bias";
  keys.activation = "mamba_hidden_act";
  keys.eps = "layer_norm_epsilon";
  keys.absent_head_dim = 64;
  keys.absent_groups = 8;
  keys.absent_state = 128;
  const std::int64_t heads = find_size(config, keys.heads).value_or(128);
  const std::int64_t head_dim = find_size(config, keys.head_dim).value_or(64);
  if (heads * head_dim > largest_width)
    refuse(config, "mamba_num_heads", "and mamba_head_dim make the state space too wide");
  Mamba2 m = read_mamba2_mixer(config, s, "mixer", keys, heads * head_dim);
  // The reference takes the shortest step from time_step_min, whatever time_step_limit says.
  const char* const shortest = has_key(config, "mamba_dt_min") ? "mamba_dt_min" : "time_step_min";
  m.shortest_step = static_cast<float>(read_positive(config, shortest, 1e-3));
  return m;
}

Experts read_nemotron_experts(const ConfigJson& config, const Sizes& s, Activation activation) {
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.shared = {}, .absent_experts = 8, .absent_ffn = 7688});
  if (find_value(config, "moe_latent_size") != nullptr)
    refuse(config, "moe_latent_size", "must be null: experts on latents are not computed here",
           ExitCode::unavailable);
  const bool bias = read_flag(config, "mlp_bias", false);
  const auto plain = [&](std::int64_t ffn, const std::string& module, bool with_bias) {
    Sizes of_one = s;
    of_one.ffn = ffn;
    return plain_mlp(of_one, activation, with_bias, module + ".up_proj", module + ".down_proj");
  };
  ExpertNames names;
  names.router = "mixer.gate";
  Experts experts = gated_experts(sizes, activation, names);
  for (std::int64_t e = 0; e < sizes.experts; ++e)
    experts.experts[static_cast<std::size_t>(e)] =
        plain(sizes.ffn, fmt::format("mixer.experts.{}", e), false);
  const std::int64_t shared_ffn =
      read_integer_or(config, "moe_shared_expert_intermediate_size", 7688, 1, largest_width);
  experts.shared = plain(shared_ffn, "mixer.shared_experts", bias);
  SigmoidRouter router;
  router.correction = "mixer.gate.e_score_correction_bias";
  set_sigmoid_router(config, read_top_k(config, sizes.experts, "num_experts_per_tok", 2), router,
                     experts);
  return experts;
}

}  // namespace

Architecture read_nemotron_h(const ConfigJson& config) {
  SizeKeys keys;
  keys.head_dim = {"head_dim", "attention_head_dim"};
  keys.absent_kv_heads = 8;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config, {"attention_head_dim",
                     "chunk_size",
                     "mamba_chunk_size",
                     "expand",
                     "mamba_expand",
                     "mamba_proj_bias",
                     "mamba_ssm_cache_dtype",
                     "mamba_dt_limit",
                     "mamba_dt_max",
                     "mamba_dt_init_floor",
                     "time_step_limit",
                     "time_step_max",
                     "time_step_floor",
                     "rescale_prenorm_residual",
                     "residual_in_fp32",
                     "use_mamba_kernels",
                     "num_logits_to_keep",
                     "norm_eps",
                     "rms_norm_eps",
                     "sliding_window",
                     "n_shared_experts",
                     "moe_shared_expert_overlap",
                     "mtp_layers_block_type",
                     "mtp_hybrid_override_pattern",
                     "rope_theta",
                     "rope_scaling",
                     "rope_parameters",
                     "partial_rotary_factor"});
  read_one_of(config, "attention_bias", {false});
  const std::string kinds = read_layer_letters(config, s.layers,
                                               {{'M', {"mamba", "linear_attention"}},
                                                {'*', {"attention", "full_attention"}},
                                                {'-', {"mlp"}},
                                                {'E', {"moe"}}},
                                               "hybrid_override_pattern", "layers_block_type");
  const Activation activation = read_activation(config, "mlp_hidden_act", "relu2");
  const NormSpec norm = rms_norm_of(config, "norm", s.hidden, "layer_norm_epsilon", 1e-5);
  const auto has = [&](char kind) { return kinds.find(kind) != std::string::npos; };
  const Mamba2 mamba = has('M') ? read_nemotron_mamba(config, s) : Mamba2{};
  const Experts experts = has('E') ? read_nemotron_experts(config, s, activation) : Experts{};
  const Attention attention =
      gqa(s, false, false, {"mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mixer.o_proj"});
  const Mlp mlp = plain_mlp(s, activation, read_flag(config, "mlp_bias", false), "mixer.up_proj",
                            "mixer.down_proj");
  OuterNames names;
  names.root = "backbone.";
  names.embedding = "embeddings";
  Architecture a = decoder(config, s, "nemotron_h", false, names);
  a.head.norm = rms_norm_of(config, "backbone.norm_f", s.hidden, "layer_norm_epsilon", 1e-5);
  a.kinds_by = "hybrid_override_pattern or layers_block_type";
  set_layers(a, [&](std::int64_t l) {
    LayerSpec layer;
    layer.mixer = Nothing{};
    layer.mlp = Nothing{};
    const char kind = kinds[static_cast<std::size_t>(l)];
    (kind == 'M' || kind == '*' ? layer.mixer_norm : layer.mlp_norm) = norm;
    if (kind == 'M') layer.mixer = mamba;
    if (kind == '*') layer.mixer = attention;
    if (kind == '-') layer.mlp = mlp;
    if (kind == 'E') layer.mlp = experts;
    return layer;
  });
  return a;
}

}  // namespace qpipe
