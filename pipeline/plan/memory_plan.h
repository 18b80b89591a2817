// Where the parts of a run lie, so that it fits: a pure function of sizes and budgets. Every answer
// gives the same output.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/plan/memory_phases.h"

namespace qpipe {

// wanted (parallel.teams): 0 chooses one layer a rank where layers do not wait for each other's
// solution, else one team. Throws UserError(ExitCode::config) when the teams do not divide the
// ranks.
Teams teams_of_run(int ranks, std::int64_t wanted, const RunSizes& run);

struct Budget {
  std::int64_t device = 0;
  std::int64_t host = 0;
  bool one_memory = false;  // the CPU backend: what is on the device is on the host
};

struct MemoryPlan {
  Places places;
  std::vector<Phase> phases;  // of the rank with the largest share
  bool fits = false;
  std::int64_t least_device = 0;  // with everything outside of the device that can be

  const Phase& device_peak() const;
  const Phase& host_peak() const;
  std::int64_t disk_bytes() const;
};

// The first that fits, by the time that it costs: all on the device; inputs of the steps on the
// host; hidden states, too; Hessians summed by panels of columns; weights of a step at a time;
// finished Hessians on the host; the same with the disk in place of the host for inputs, then for
// hidden states. Then each saving that the result fits without is undone. Does not throw:
// without any that fits, the nearest one.
MemoryPlan plan_memory(const RunSizes& run, const Teams& teams, const Budget& budget);

// Tokens of the largest memory.micro_batch that fits, with these places or, without, with any; 0
// when none does.
std::int64_t largest_micro_batch(const RunSizes& run, const Teams& teams, const Budget& budget,
                                 const Places* places);

// One line: what is needed for what, what there is, and what would help.
std::string does_not_fit(const RunSizes& run, const Teams& teams, const Budget& budget,
                         const MemoryPlan& plan);

// "step inputs on the host, Hessians by panels of 4096 columns", or "all on the GPU".
std::string describe(const Places& places);

}  // namespace qpipe
