// What the Qwen families share.
#pragma once

#include "pipeline/model/readers.h"
#include "pipeline/model/rope_config.h"

namespace qpipe {

// Norms of each q and k head, biases where attention_bias says so (Qwen 3).
Attention qwen3_attention(const ConfigJson& config, const Sizes& sizes);

// RMS norms around attention with these windows and a gated MLP.
struct QwenForm {
  double theta = 10000.0;
  double eps = 1e-6;
};
Architecture qwen_like(const ConfigJson& config, const Sizes& sizes, const std::string& model_type,
                       Attention attention, const std::vector<std::int64_t>& windows,
                       const QwenForm& form = {});

}  // namespace qpipe
