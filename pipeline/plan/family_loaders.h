// Families that a program does not load in a format which it loads of others.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stages/formats/format.h"

namespace qpipe {

struct FamilyFault {
  std::string program;       // "transformers" or "GPTQModel"
  std::string why;           // "gives NaN: …"
  bool dequantized = false;  // it loads the folder if told to dequantize it
};

// Found by loading one model of each family with transformers 5.24 (compressed-tensors 0.20,
// bitsandbytes 0.50) and GPTQModel 7.7: tests/python/family_interop.py. `config`: config.json.
// packs_experts: linears of experts are among the packed ones.
std::vector<FamilyFault> family_faults(Format format, const nlohmann::json& config,
                                       bool packs_experts);

}  // namespace qpipe
