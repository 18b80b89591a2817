// README.md of the output: what the hub shows and people read.
#pragma once

#include <string>
#include <vector>

#include "pipeline/output/loaders.h"
#include "pipeline/output/report.h"
#include "pipeline/output/source_card.h"

namespace qpipe {

// What stands for the folder in the blocks that load it; `qpipe push` puts the repository's name
// there.
inline constexpr const char* this_folder = "THIS_FOLDER";

// `config`: the settings that made it, as TOML. Holds nothing that depends on the machine or the
// number of ranks, so that equal runs give equal folders.
std::string model_card(const RunReport& report, const QuantizePlan& plan, const SourceCard& source,
                       const std::vector<Loader>& loaders, const std::string& config);

}  // namespace qpipe
