// quantization_config of config.json: settings, and the name of everything that is not quantized.
#pragma once

#include <nlohmann/json.hpp>

#include "pipeline/options/options.h"
#include "pipeline/plan/plan.h"

namespace qpipe {

// formats.md, Config of each section. Modules that stay as they are stand in `ignore`,
// `modules_to_not_convert`, `llm_int8_skip_modules` or, as "-:" rules, in `dynamic`: each by its
// name, and where servers run several as one and do not look for the single names, that name too.
nlohmann::json quantization_config(const Options& options, const QuantizePlan& plan);

}  // namespace qpipe
