// Falcon-H1: attention and Mamba-2 side by side on one norm, and factors for what nearly every
// linear reads or gives.
#include <algorithm>
#include <array>
#include <cmath>

#include "pipeline/model/families/families.h"
#include "pipeline/model/mamba_readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

float read_factor(const ConfigJson& config, const std::string& key) {
  return static_cast<float>(read_positive(config, key, 1.0));
}

template <std::size_t count>
std::array<float, count> read_factors(const ConfigJson& config, const std::string& key) {
  std::array<float, count> factors;
  factors.fill(1.0f);
  const nlohmann::json* given = find_value(config, key);
  if (given == nullptr) return factors;
  const auto positive = [](const nlohmann::json& value) {
    return value.is_number() && value.get<double>() > 0.0 &&
           std::isfinite(static_cast<float>(value.get<double>()));
  };
  if (!given->is_array() || given->size() != count ||
      !std::all_of(given->begin(), given->end(), positive))
    refuse(config, key, "must be an array of " + std::to_string(count) + " numbers above 0");
  for (std::size_t i = 0; i < count; ++i) factors[i] = (*given)[i].get<float>();
  return factors;
}

// f · (x Wᵀ) is (f x) Wᵀ: factors of inputs become factors of outputs where there is no bias.
void check_no_bias(const ConfigJson& config, bool bias, float factor, const std::string& key) {
  if (bias && factor != 1.0f)
    refuse(config, key, "must be false: a bias behind a scaled input is not computed here",
           ExitCode::unavailable);
}

Attention read_scaled_attention(const ConfigJson& config, const Sizes& s) {
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  const float in = read_factor(config, "attention_in_multiplier");
  check_no_bias(config, bias, in, "attention_bias");
  attention.scale *= in * in * read_factor(config, "key_multiplier");
  attention.value_scale = in;
  return attention;
}

Mamba2 read_scaled_mamba(const ConfigJson& config, const Sizes& s) {
  Mamba2Keys keys;
  keys.out_bias = "projectors_bias";
  // Null is expand · hidden; without the key it is 1024.
  const std::int64_t inner = is_null(config, "mamba_d_ssm")
                                 ? 0
                                 : read_integer_or(config, "mamba_d_ssm", 1024, 1, largest_width);
  if (inner > 0) skip_keys(config, {"mamba_expand"});
  Mamba2 m = read_mamba2_mixer(config, s, "mamba", keys, inner);
  read_time_step_limit(config, m);
  m.gate_first = !read_flag(config, "mamba_norm_before_gate", true);
  if (!read_flag(config, "mamba_rms_norm", false)) {
    m.norm.reset();
    m.norm_groups = 1;
    m.gate_first = true;
  }
  m.multipliers = read_factors<5>(config, "ssm_multipliers");
  const float in = read_factor(config, "ssm_in_multiplier");
  check_no_bias(config, m.in.bias, in, "mamba_proj_bias");
  for (float& factor : m.multipliers) factor *= in;
  return m;
}

}  // namespace

Architecture read_falcon_h1(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 8192;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config, {"mamba_chunk_size", "num_logits_to_keep", "mamba_use_mlp"});
  Mlp mlp = gated_mlp(s, read_activation(config, "hidden_act", "silu"),
                      read_flag(config, "mlp_bias", false),
                      {"feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"});
  const auto mlp_factors = read_factors<2>(config, "mlp_multipliers");
  mlp.gate_multiplier = mlp_factors[0];
  mlp.out_multiplier = mlp_factors[1];
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, "rms_norm_eps", 1e-5);
  };
  LayerSpec layer;
  layer.mixer = AttentionBesideMamba2{
      read_scaled_attention(config, s), read_scaled_mamba(config, s),
      read_factor(config, "attention_out_multiplier"), read_factor(config, "ssm_out_multiplier")};
  layer.mlp = mlp;
  layer.mixer_norm = norm("input_layernorm");
  layer.mlp_norm = norm("pre_ff_layernorm");
  Architecture a = decoder(config, s, "falcon_h1");
  a.embedding.multiplier = read_factor(config, "embedding_multiplier");
  a.head.norm = norm("model.final_layernorm");
  a.head.multiplier = read_factor(config, "lm_head_multiplier");
  set_layers(a, layer);
  return a;
}

}  // namespace qpipe
