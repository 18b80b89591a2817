// Bamba: Mamba-2 in most layers, attention with half of each head rotated in some.
#include <algorithm>

#include "pipeline/model/expert_readers.h"
#include "pipeline/model/families/families.h"
#include "pipeline/model/mamba_readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_bamba(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 262144;
  const Sizes s = read_sizes(config, keys);
  skip_keys(config, {"mamba_chunk_size", "num_logits_to_keep", "attn_rotary_emb",
                     "partial_rotary_factor", "z_loss_coefficient"});
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.rope = read_rope(config, {.head_dim = s.head_dim,
                                      .max_positions = s.max_positions,
                                      .partial = true,
                                      .share = 0.5,
                                      .share_key = ""});
  Mamba2 mamba = read_mamba2_mixer(config, s, "mamba");
  read_time_step_limit(config, mamba);
  const Mlp mlp = gated_mlp(
      s, read_activation(config, "hidden_act", "silu"), read_flag(config, "mlp_bias", false),
      {"feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"});
  const auto norm = [&](const std::string& name) {
    return rms_norm_of(config, name, s.hidden, "rms_norm_eps", 1e-5);
  };
  const std::vector<std::int64_t> attends =
      read_layer_numbers(config, "attn_layer_indices", s.layers);
  Architecture a = decoder(config, s, "bamba");
  a.head.norm = norm("model.final_layernorm");
  a.kinds_by = "attn_layer_indices";
  set_layers(a, [&](std::int64_t l) {
    LayerSpec layer;
    layer.mixer_norm = norm("input_layernorm");
    layer.mlp_norm = norm("pre_ff_layernorm");
    layer.mlp = mlp;
    if (std::find(attends.begin(), attends.end(), l) != attends.end())
      layer.mixer = attention;
    else
      layer.mixer = mamba;
    return layer;
  });
  return a;
}

}  // namespace qpipe
