// qpipe CONFIG.toml: reads a checkpoint, quantizes it layer by layer and writes the output folder.
#pragma once

#include "pipeline/options.h"

namespace qpipe {

// Collective over all ranks of MPI_COMM_WORLD, which is initialised. dry_run: checks the model and the plan, writes nothing.
// Returns the exit code. Throws UserError for faults that every rank finds alike, other exceptions for faults of one rank.
int run_quantize(const Options& options, bool dry_run);

}  // namespace qpipe
