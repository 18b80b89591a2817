// What a rank holds in each phase of a run, in bytes by purpose: formulas of the allocations in
// stages/, kernels/ and pipeline/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/teams.h"
#include "pipeline/plan/run_sizes.h"
#include "stages/places.h"

namespace qpipe {

// Blocks of samples of the rank of a team that has the most.
std::int64_t largest_share(const RunSizes& run, const Teams& teams);
// Whether blocks stream from team to team (pipeline/layers/hidden_stream).
bool streams(const RunSizes& run, const Teams& teams);

// Experts' groups of the step that a rank solves at a time (stages/solvers.h); 0: all ranks work on
// one group together.
std::int64_t groups_side_by_side(const StepSizes& step, const Places& places, int ranks_of_team);
// Whether the sum of such a group goes to the rank that solves it alone: AWQ's searches need all of
// them on every rank (pipeline/quantize_layer.cpp).
bool sums_go_to_owners(const RunSizes& run, const StepSizes& step, const Places& places,
                       int ranks_of_team);

struct Use {
  std::string purpose;
  std::int64_t device = 0;
  std::int64_t host = 0;
  std::int64_t disk = 0;
};

struct Phase {
  std::string name;  // "down_proj: Hessian"
  std::vector<Use> uses;

  Use total() const;
};

// blocks: of the rank, as largest_share counts them.
std::vector<Phase> memory_phases(const RunSizes& run, const Teams& teams, std::int64_t blocks,
                                 const Places& places);

// The CUDA context, cuBLAS, cuSOLVER and NCCL on the device, and what the process and its libraries
// hold on the host. Not on the CPU backend, whose libraries take little.
inline constexpr std::int64_t library_device_bytes = std::int64_t{800}
                                                     << 20;  // measured: 792 MiB on an H100
inline constexpr std::int64_t library_host_bytes = std::int64_t{1} << 29;

}  // namespace qpipe
