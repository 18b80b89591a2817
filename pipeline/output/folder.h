// The files of the output folder beside the weights: configuration, index, model card, tokenizer.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "pipeline/model/checkpoint.h"
#include "pipeline/options/options.h"
#include "pipeline/output/manifest.h"
#include "pipeline/output/report.h"
#include "pipeline/plan/plan.h"

namespace qpipe {

// "org/name" as the hub writes names, where the folder is a snapshot in the hub's cache or
// config.json knows it; else the folder's name, printable.
std::string model_name(const Checkpoint& checkpoint);

struct OutputFiles {
  std::vector<std::string> copied;  // from the model's folder
  FileNames all;                    // that the run may write, the weights' shards included
};

// Throws UserError as auxiliary_files.
OutputFiles output_files(const QuantizePlan& plan, const Checkpoint& source);

// All but the shards, which must be there. index: null for a single shard. Rank 0 only.
void write_folder(const Options& options, const Checkpoint& source, const QuantizePlan& plan,
                  const OutputFiles& files, const nlohmann::json& index, const RunReport& report);

}  // namespace qpipe
