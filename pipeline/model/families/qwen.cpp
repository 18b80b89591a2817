// Qwen 2 and 3: Llama with biases of q, k and v, or with norms of each q and k head; windows from
// some layer on.
#include "pipeline/model/families/qwen.h"

#include "pipeline/model/families/families.h"

namespace qpipe {

Attention qwen3_attention(const ConfigJson& config, const Sizes& s) {
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.q_norm = {rms_norm_of(config, "self_attn.q_norm", s.head_dim)};
  attention.k_norm = {rms_norm_of(config, "self_attn.k_norm", s.head_dim)};
  return attention;
}

Architecture qwen_like(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                       Attention attention, const std::vector<std::int64_t>& windows,
                       const QwenForm& form) {
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.theta = form.theta;
  attention.rope = read_rope(config, rule);
  const Mlp mlp = gated_mlp(s, read_activation(config, "hidden_act", "silu"), false);
  const auto in_layer = [&](std::int64_t l) {
    attention.window = windows.at(static_cast<std::size_t>(l));
    return attention;
  };
  return llama_like(config, s, model_type, mlp, in_layer, {.absent_eps = form.eps});
}

namespace {

SizeKeys qwen_keys() {
  SizeKeys keys;
  keys.absent_kv_heads = 32;
  keys.absent_max_positions = 32768;
  return keys;
}

}  // namespace

Architecture read_qwen2(const ConfigJson& config) {
  read_one_of(config, "use_mrope", {false});
  const Sizes s = read_sizes(config, qwen_keys());
  return qwen_like(config, s, "qwen2", gqa(s, true, false), windows_by_layer(config, s.layers));
}

Architecture read_qwen3(const ConfigJson& config) {
  read_one_of(config, "use_mrope", {false});
  SizeKeys keys = qwen_keys();
  keys.absent_head_dim = 128;
  const Sizes s = read_sizes(config, keys);
  return qwen_like(config, s, "qwen3", qwen3_attention(config, s),
                   windows_by_layer(config, s.layers));
}

}  // namespace qpipe
