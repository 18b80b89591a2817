// qpipe CONFIG.toml: reads a checkpoint, quantizes it layer by layer and writes the output folder.
#pragma once

#include <chrono>
#include <functional>
#include <optional>

#include "pipeline/options/options.h"
#include "pipeline/output/report.h"
#include "stages/places.h"

namespace qpipe {

// Collective over all ranks of MPI_COMM_WORLD, which is initialised. dry_run: checks the model and
// the plan, writes nothing. begin: what the reported times count from. at_end: called when
// everything is on the disk and told, while all memory is still held. perplexity_before: the
// original's, where it is known; it is computed otherwise, if the options ask for it. places:
// instead of those of the plan; the folder is the run's. Throws UserError for faults that every
// rank finds alike, other exceptions for faults of one rank.
RunReport quantize(const Options& options, bool dry_run,
                   std::optional<double> perplexity_before = std::nullopt,
                   const std::optional<Places>& places = std::nullopt,
                   std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now(),
                   const std::function<void()>& at_end = {});

}  // namespace qpipe
