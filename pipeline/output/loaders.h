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
  std::string why;  // what it needs, or why it does not load; may be empty
};

// transformers, vLLM, GPTQModel, AutoAWQ. `quantization`: quantization_config of config.json; bits:
// of every quantized linear.
std::vector<Loader> loaders_of(StoredFormat format, const nlohmann::json& quantization,
                               const std::vector<int>& bits);

std::vector<int> bits_of(const std::vector<LinearReport>& linears);

}  // namespace qpipe
