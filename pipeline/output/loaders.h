// Which programs load a quantized folder: formats.md §0, for the versions named there.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/model/read_back.h"

namespace qpipe {

// One linear of a decoder layer as it is stored.
struct LinearReport {
  std::string name;
  LinearSpec spec;
  std::optional<PackedLinear> packed;    // nothing: stored as floats
  double bits_per_weight = 0.0;          // all its tensors but the bias
  std::optional<double> relative_error;  // ‖W − Q‖ / ‖W‖
};

struct Loader {
  std::string name;
  bool loads = false;
  std::string why;           // what it needs, or why it does not load; may be empty
  bool dequantizes = false;  // transformers: only with CompressedTensorsConfig(dequantize=True)
};

// Bits of every linear that is quantized, and whether all linears are.
struct QuantizedLinears {
  std::vector<int> bits;
  bool all = true;
  bool experts = false;  // some are experts'
};

// transformers, vLLM, GPTQModel, AutoAWQ. `config`: config.json with its quantization_config.
std::vector<Loader> loaders_of(StoredFormat format, const nlohmann::json& config,
                               const QuantizedLinears& linears);

QuantizedLinears quantized_linears(const std::vector<LinearReport>& linears);

}  // namespace qpipe
