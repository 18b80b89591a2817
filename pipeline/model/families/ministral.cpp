// Ministral: Mistral with windows on some layers. Ministral 3: without windows, YaRN, and queries
// that grow with their position.
#include "pipeline/model/families/families.h"
#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

namespace {

SizeKeys ministral_keys(std::int64_t positions) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = positions;
  return keys;
}

}  // namespace

Architecture read_ministral(const ConfigJson& config) {
  const Sizes s = read_sizes(config, ministral_keys(131072));
  Attention attention = gqa(s, false, false);
  attention.rope = read_rope(config, {.head_dim = s.head_dim, .max_positions = s.max_positions});
  const bool full = is_null(config, "sliding_window");
  const std::vector<std::int64_t> windows =
      windows_between(config, s.layers, 4096, [&](std::int64_t) { return full; });
  return llama_like(config, s, "ministral",
                    gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                    [&](std::int64_t l) {
                      attention.window = windows.at(static_cast<std::size_t>(l));
                      return attention;
                    });
}

Architecture read_ministral3(const ConfigJson& config) {
  SizeKeys keys = ministral_keys(262144);
  keys.absent_head_dim = 128;
  const Sizes s = read_sizes(config, keys);
  RopeRule rule{.head_dim = s.head_dim, .max_positions = s.max_positions};
  rule.theta = 1e6;
  rule.absent = {
      {"rope_type", "yarn"}, {"factor", 16.0},        {"original_max_position_embeddings", 16384},
      {"mscale", 1.0},       {"mscale_all_dim", 1.0}, {"llama_4_scaling_beta", 0.1}};
  Attention attention = gqa(s, false, false);
  attention.rope = read_rope(config, rule);
  attention.query_scale = read_query_scale(config, rule);
  attention.window = read_window(config, 0);
  windows_of_all(config, s.layers, attention.window);
  return llama_like(config, s, "ministral3",
                    gated_mlp(s, read_activation(config, "hidden_act", "silu"), false),
                    [&](std::int64_t) { return attention; }, {.absent_eps = 1e-5});
}

}  // namespace qpipe
