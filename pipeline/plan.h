// What a run will do, decided before any GPU work: the settings of every module and the tensors of the output.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "pipeline/checkpoint.h"
#include "pipeline/options.h"
#include "stages/architecture.h"
#include "stages/gptq_format.h"

namespace qpipe {

struct QuantizePlan {
  LinearSettings defaults;
  // Full module name → settings (skip included), for every linear of every decoder layer.
  std::map<std::string, LinearSettings> modules;
  std::vector<TensorInfo> tensors;  // of the output, in order: embedding, layers, final norm, head
  DType dtype = DType::f16;         // of the tensors that are not packed
  GptqFormat format = GptqFormat::v1;
  bool may_need_v2 = false;  // v1 was asked for an asymmetric grid: v2 if a zero of 0 turns up
  bool quantized_propagation = true;
  bool awq = false;  // modules' settings say how the scaled weights are rounded
  std::int64_t max_shard_bytes = 0;
  double bits_per_weight = 0.0;  // of the quantized linears, with scales, zeros and g_idx
};

// Throws UserError(ExitCode::config) when a group size does not divide a module's inputs (names the sizes that do), when sizes cannot be
// packed, or when an override matches nothing.
QuantizePlan plan_quantization(const Options& options, const Architecture& architecture, const Checkpoint& checkpoint);

// The plan's per-module differences as GPTQModel's `dynamic`; null without overrides.
nlohmann::json dynamic_json(const Options& options);

}  // namespace qpipe
