// Phi-3 and Phi-4: Llama with one projection for q, k and v, one for gate and up, LongRoPE on a
// part of the head, and a window on every layer.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

Architecture read_phi3(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_max_positions = 4096;
  const Sizes s = read_sizes(config, keys);
  for (const char* key : {"attention_bias", "mlp_bias", "lm_head_bias"})
    read_one_of(config, key, {false});
  for (const char* key : {"full_attn_mod", "interpolate_factor"}) read_one_of(config, key, {1});
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.partial = true;
  rule.original_positions = 4096;
  Attention attention = fused_gqa(s, side_by_side(s.heads, s.kv_heads, s.head_dim), false, false,
                                  "self_attn.qkv_proj", "self_attn.o_proj");
  attention.rope = read_rope(config, rule);
  const std::vector<std::int64_t> windows =
      windows_of_all(config, s.layers, read_window(config, 0));
  const Mlp mlp = fused_gated_mlp(s, read_activation(config, "hidden_act", "silu"), false,
                                  "mlp.gate_up_proj", "mlp.down_proj");
  return llama_like(config, s, "phi3", mlp,
                    [&](std::int64_t l) {
                      attention.window = windows.at(static_cast<std::size_t>(l));
                      return attention;
                    },
                    {.absent_eps = 1e-5});
}

}  // namespace qpipe
