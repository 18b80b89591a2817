// A whole run of one of the reference implementation's tiny models (shared/oracles): 64 samples of
// 48 tokens.
#pragma once

#include <filesystem>
#include <string>

#include "pipeline/options/options.h"
#include "tests/paths.h"

namespace qpipe {

inline const std::filesystem::path oracles = shared_folder() / "oracles";

inline Options oracle_options(const std::string& model, const std::string& method,
                              const std::filesystem::path& output) {
  Options options;
  options.model.path = (oracles / "models" / model).string();
  options.calibration.data = (oracles / "calib_tiny.safetensors").string();
  options.calibration.dataset = "calib";
  options.calibration.samples = 64;
  options.calibration.seqlen = 48;
  options.quantize.method = method;
  options.quantize.group_size = 32;
  options.output.path = output.string();
  options.output.overwrite = true;
  options.run.progress = "none";
  return options;
}

}  // namespace qpipe
