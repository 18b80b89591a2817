// Jamba: Mamba in most layers, attention without positions in some; an MLP or experts behind both.
#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"

namespace qpipe {

namespace {

Mamba read_jamba_mamba(const ConfigJson& config, const Sizes& s) {
  const std::int64_t expand = read_integer_or(config, "mamba_expand", 2, 1, largest_width);
  if (expand * s.hidden > largest_width / 2)
    refuse(config, "mamba_expand", "makes the state space too wide");
  const std::int64_t inner = expand * s.hidden;
  const auto* rank_value = find_value(config, "mamba_dt_rank");
  const std::int64_t rank = rank_value == nullptr || *rank_value == "auto"
                                ? (s.hidden + 15) / 16
                                : read_integer(config, "mamba_dt_rank", 1, largest_width / 2);
  constexpr std::int64_t widest_state = 64;  // of kernels/selective_scan.h
  Mamba m;
  m.state = read_integer_or(config, "mamba_d_state", 16, 1, largest_width);
  if (m.state > widest_state)
    refuse(config, "mamba_d_state", "must be at most 64 here", ExitCode::unavailable);
  const bool bias = read_flag(config, "mamba_proj_bias", false);
  m.in = {"mamba.in_proj", 2 * inner, s.hidden, bias};
  m.x_proj = {"mamba.x_proj", rank + 2 * m.state, inner};
  m.dt_proj = {"mamba.dt_proj", inner, rank, true};
  m.dt_proj.kept = true;  // transformers multiplies with the weight itself
  m.out = {"mamba.out_proj", s.hidden, inner, bias};
  m.conv = {"mamba.conv1d", inner, read_integer_or(config, "mamba_d_conv", 4, 1, 256),
            read_flag(config, "mamba_conv_bias", true)};
  m.a_log = "mamba.A_log";
  m.d = "mamba.D";
  m.dt_norm = rms_norm_of(config, "mamba.dt_layernorm", rank);
  m.b_norm = rms_norm_of(config, "mamba.b_layernorm", m.state);
  m.c_norm = rms_norm_of(config, "mamba.c_layernorm", m.state);
  return m;
}

// Every PERIODth layer from OFFSET on.
std::function<bool(std::int64_t layer)> read_every(const ConfigJson& config,
                                                   const std::string& period_key,
                                                   std::int64_t absent_period,
                                                   const std::string& offset_key,
                                                   std::int64_t absent_offset) {
  const std::int64_t period = read_integer_or(config, period_key, absent_period, 1, most_layers);
  const std::int64_t offset = read_integer_or(config, offset_key, absent_offset, 0, most_layers);
  if (offset >= period) refuse(config, offset_key, "must be below " + period_key);
  return [=](std::int64_t layer) { return layer % period == offset; };
}

}  // namespace

Architecture read_jamba(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 262144;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config, {"use_mamba_kernels", "use_mambapy", "use_associative_scan",
                     "num_logits_to_keep", "sliding_window", "calc_logits_for_entire_prompt"});
  const Attention attention = gqa(s, false, false);
  const Mamba mamba = read_jamba_mamba(config, s);
  const Activation activation = read_activation(config, "hidden_act", "silu");
  if (activation != Activation::silu)
    refuse(config, "hidden_act", "must be silu for this family here", ExitCode::unavailable);
  const Mlp mlp =
      gated_mlp(s, activation, false,
                {"feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"});
  const auto attends = read_every(config, "attn_layer_period", 8, "attn_layer_offset", 4);
  const auto routes = read_every(config, "expert_layer_period", 2, "expert_layer_offset", 1);
  Architecture a = decoder(config, s, "jamba");
  a.head.norm = rms_norm_of(config, "model.final_layernorm", s.hidden);
  a.kinds_by = "attn_layer_period and attn_layer_offset (or those of experts)";
  set_layers(a, [&](std::int64_t l) {
    LayerSpec layer;
    layer.mixer_norm = rms_norm_of(config, "input_layernorm", s.hidden);
    layer.mlp_norm = rms_norm_of(config, "pre_ff_layernorm", s.hidden);
    layer.mlp = mlp;
    if (attends(l))
      layer.mixer = attention;
    else
      layer.mixer = mamba;
    return layer;
  });
  const ExpertSizes sizes = read_expert_sizes(
      config, s, {.ffn = {"intermediate_size"}, .shared = {}, .absent_experts = 16});
  const std::int64_t top_k = read_top_k(config, sizes.experts, "num_experts_per_tok", 2);
  if (sizes.experts == 1) return a;
  ExpertNames names;
  names.router = "feed_forward.router";
  names.experts = "feed_forward.experts";
  Experts experts = gated_experts(sizes, activation, names);
  set_softmax_router(top_k, false, experts);
  set_experts(a, experts, routes);
  return a;
}

}  // namespace qpipe
