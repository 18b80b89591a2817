// Trinity (AFMoE): heads behind a gate and normed, positions on layers with windows alone, norms
// before and behind both blocks, DeepSeek-V3's router under other names.
#include <cmath>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Experts afmoe_experts(const ConfigJson& config, const Sizes& s) {
  read_one_of(config, "score_func", {"sigmoid"});
  for (const char* key : {"num_expert_groups", "num_limited_groups"}) read_one_of(config, key, {1});
  skip_keys(config, {"load_balance_coeff", "use_grouped_mm"});
  ExpertNames names;
  names.router = "mlp.router.gate";
  SigmoidRouter router;
  router.correction = "mlp.expert_bias";
  router.normalize = "route_norm";
  router.scaling = "route_scale";
  const ExpertSizes sizes =
      read_expert_sizes(config, s, {.absent_experts = 64, .absent_ffn = 1408, .absent_shared = 2});
  return sigmoid_experts(config, sizes, 6, router, names);
}

}  // namespace

Architecture read_afmoe(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 16384;
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  add_qk_norms(config, 1e-5, attention);
  attention.gate = LinearSpec{"self_attn.gate_proj", s.heads * s.head_dim, s.hidden};
  const Rope rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  const std::vector<std::int64_t> windows =
      windows_between(config, s.layers, 1024,
                      read_integer_or(config, "global_attn_every_n_layers", 4, 1, most_layers));

  Architecture a = decoder(config, s, "afmoe");
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, "rms_norm_eps", 1e-5);
  };
  if (read_flag(config, "mup_enabled", false))
    a.embedding.multiplier = std::sqrt(static_cast<float>(s.hidden));
  a.head.norm = norm("model.norm");
  LayerSpec layer;
  layer.mixer_norm = norm("input_layernorm");
  layer.after_mixer = norm("post_attention_layernorm");
  layer.mlp_norm = norm("pre_mlp_layernorm");
  layer.after_mlp = norm("post_mlp_layernorm");
  layer.mlp = gated_mlp(s, read_activation(config, "hidden_act", "silu"), false);
  set_layers(a, [&](std::int64_t l) {
    attention.window = windows[static_cast<std::size_t>(l)];
    attention.rope = attention.window > 0 ? rope : Rope{};
    layer.mixer = attention;
    return layer;
  });
  set_experts(a, afmoe_experts(config, s),
              layers_behind_dense(config, s.layers, 1, "num_dense_layers"));
  return a;
}

}  // namespace qpipe
