// Qwen 2 and 3: Llama with biases of q, k and v, or with norms of each q and k head; windows from
// some layer on.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

Architecture qwen(const ConfigJson& config, const Sizes& s, const std::string& model_type,
                  Attention attention) {
  read_one_of(config, "use_mrope", {false});
  attention.rope = read_rope(config, {s.head_dim, s.max_positions});
  const Mlp mlp = gated_mlp(s, read_activation(config, "hidden_act", "silu"), false);
  const std::vector<std::int64_t> windows = windows_by_layer(config, s.layers);
  return llama_like(config, s, model_type, mlp, [&](std::int64_t l) {
    attention.window = windows.at(static_cast<std::size_t>(l));
    return attention;
  });
}

SizeKeys qwen_keys() {
  SizeKeys keys;
  keys.absent_kv_heads = 32;
  keys.absent_max_positions = 32768;
  return keys;
}

}  // namespace

Architecture read_qwen2(const ConfigJson& config) {
  const Sizes s = read_sizes(config, qwen_keys());
  return qwen(config, s, "qwen2", gqa(s, true, false));
}

Architecture read_qwen3(const ConfigJson& config) {
  SizeKeys keys = qwen_keys();
  keys.absent_head_dim = 128;
  const Sizes s = read_sizes(config, keys);
  const bool bias = read_flag(config, "attention_bias", false);
  Attention attention = gqa(s, bias, bias);
  attention.q_norm = {rms_norm_of(config, "self_attn.q_norm", s.head_dim)};
  attention.k_norm = {rms_norm_of(config, "self_attn.k_norm", s.head_dim)};
  return qwen(config, s, "qwen3", attention);
}

}  // namespace qpipe
