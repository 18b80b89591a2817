// The files of the output folder beside the weights: configuration, index, model card, tokenizer.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "pipeline/model/checkpoint.h"
#include "pipeline/options/options.h"
#include "pipeline/output/report.h"
#include "pipeline/plan/plan.h"

namespace qpipe {

// "org/name" when config.json knows it, else the folder's name.
std::string model_name(const Checkpoint& checkpoint);

// index: null for a single shard. Rank 0 only.
void write_folder(const Options& options, const Checkpoint& source, const QuantizePlan& plan,
                  const nlohmann::json& index, const RunReport& report);

}  // namespace qpipe
