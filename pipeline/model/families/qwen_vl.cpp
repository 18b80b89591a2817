// The text models of Qwen 2, 2.5 and 3 VL. A text has one position for time, height and width, so
// that their rope is the plain one.
#include "pipeline/model/families/families.h"
#include "pipeline/model/families/qwen.h"

namespace qpipe {

namespace {

Architecture qwen2_vl(const ConfigJson& config, const std::string& model_type) {
  SizeKeys keys;
  keys.absent_kv_heads = 8;
  keys.absent_max_positions = 32768;
  const Sizes s = read_sizes(config, keys);
  return qwen_like(config, s, model_type, gqa(s, true, false),
                   windows_by_layer(config, s.layers, 80), {.theta = 1e6, .eps = 1e-5});
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
  return qwen_like(config, s, "qwen3_vl_text", qwen3_attention(config, s),
                   windows_of_all(config, s.layers, 0), {.theta = 5e5});
}

}  // namespace qpipe
