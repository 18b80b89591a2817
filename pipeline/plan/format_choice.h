// Which container and codes the method, [output] and the target ask for, and what will load the
// result (formats.md §0).
#pragma once

#include <string>
#include <vector>

#include "pipeline/options/options.h"
#include "stages/formats/format.h"

namespace qpipe {

struct FormatChoice {
  StorageSettings storage;
  std::vector<std::string>
      notes;  // for the user: who will not load the result, and the setting to change
};

// Whether what is not quantized may be bfloat16: compressed-tensors keeps the scales of integer
// codes in the model's type, and they are chosen as float16.
bool takes_bfloat16(const StorageSettings& storage);

// settings: of the modules without an override. source: the type of the checkpoint's weights.
// Throws UserError(ExitCode::config) when output.format or output.target cannot hold the method's
// result.
FormatChoice choose_format(const Options& options, const LinearSettings& settings, DType source);

// What the override changes in a module's settings.
void apply_override(const ModuleOverride& o, LinearSettings& settings);

// "bfloat16", "float16", "float32", else u8.
DType dtype_named(const std::string& name);

}  // namespace qpipe
