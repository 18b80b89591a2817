// The memory of a run's ranks, asked before any of it is taken.
#pragma once

#include "launch/comm.h"
#include "launch/device.h"
#include "pipeline/options/options.h"
#include "pipeline/plan/memory_plan.h"

namespace qpipe {

// [memory] of one rank where the options say "auto": 92% of the GPU's free memory divided by the
// ranks that share it, and 80% of the machine's available memory divided by its ranks. On the CPU
// backend the device's memory is the machine's. Never more than a limit of address space leaves.
Budget budget_of(const Options::Memory& options, const Placement& placement);

// Throws UserError(ExitCode::config) where a limit of address space (ulimit -v) leaves less than
// the libraries map for this rank's threads. OpenBLAS before 0.3.30 would ask again and again, for
// ever. After set_cpu_threads, before the first matrix product.
void check_address_space();

// A plan that fits the least budget of all ranks, the same on every rank. Collective. Throws
// UserError(ExitCode::config) when there is none.
MemoryPlan plan_memory_of_ranks(const Options::Memory& options, const RunSizes& run,
                                const Teams& teams, const Placement& placement, Comm& comm);

}  // namespace qpipe
