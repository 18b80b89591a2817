// The text models of Qwen 2, 2.5 and 3 VL. A text has one position for time, height and width, so
// that their rope is the plain one.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Architecture qwen_vl(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                     Attention attention, double theta, double eps,
                     const std::vector<std::int64_t>& windows) {
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.theta = theta;
  attention.rope = read_rope(config, rule);
  return llama_like(config, s, model_type,
                    gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                    [&](std::int64_t l) {
                      attention.window = windows.at(static_cast<std::size_t>(l));
                      return attention;
                    },
                    {.absent_eps = eps});
}

Architecture qwen2_vl(const ConfigJson& config, const std::string& model_type) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 32768;
  const Sizes s = read_sizes(config, keys);
  return qwen_vl(config, s, model_type, gqa(s, true, false), 1e6, 1e-5,
                 windows_by_layer(config, s.layers, 80));
}

}  // namespace

Architecture read_qwen2_vl(const ConfigJson& config) { return qwen2_vl(config, "qwen2_vl"); }
Architecture read_qwen2_5_vl(const ConfigJson& config) { return qwen2_vl(config, "qwen2_5_vl"); }

Architecture read_qwen3_vl(const ConfigJson& config) {
  SizeKeys keys;
  keys.absent_kv_heads = 32;
  keys.absent_head_dim = 128;
  keys.absent_max_positions = 128000;
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.q_norm = {rms_norm_of(config, "self_attn.q_norm", s.head_dim)};
  attention.k_norm = {rms_norm_of(config, "self_attn.k_norm", s.head_dim)};
  return qwen_vl(config, s, "qwen3_vl_text", attention, 5e5, 1e-6,
                 windows_of_all(config, s.layers, 0));
}

}  // namespace qpipe
