// What must be the same for a run to go on where another stopped: settings, inputs and build; not
// ranks, threads or timeouts.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/data/dataset.h"
#include "pipeline/model/checkpoint.h"
#include "pipeline/options/options.h"

namespace qpipe {

// Dotted key → value; those of the build (build_identity.h) begin with "build ". The model's
// weights count by their header, size and time of change, and their contents are not read. Throws
// UserError(no_input) when a shard cannot be looked at.
nlohmann::json run_identity(const Options& options, const Checkpoint& model,
                            const std::string& model_name, const Tokens& calibration,
                            const Tokens& evaluation, const std::string& device,
                            const nlohmann::json& build);

// The build in an identity, as build_identity gives it; and the identity without it.
nlohmann::json build_in(const nlohmann::json& identity);
nlohmann::json without_build(nlohmann::json identity);

// The output folder as identities name it: absolute, whatever way it is written.
std::string output_name(const Options& options);

// A line for each key that differs: "quantize.bits: was 4, is 3".
std::vector<std::string> identity_differences(const nlohmann::json& before,
                                              const nlohmann::json& now);

}  // namespace qpipe
