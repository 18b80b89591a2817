// qpipe plan: whether a run fits, and what it takes, before there is a GPU or the weights:
// config.json is enough.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "pipeline/options/options.h"

namespace qpipe {

struct PlanRequest {
  Options options;
  int ranks = 1;
  std::int64_t teams = 0;          // 0: parallel.teams
  int ranks_per_node = 0;          // 0: all on one machine
  std::string gpu_memory;          // of each card; "": memory.gpu, where that is a size
  std::string host_memory;         // of each machine; "": memory.host of each rank
  double tflops = 0.0;             // dense bfloat16 of the card; 0: an H100
  std::vector<std::string> rates;  // "network=12.5"
  std::filesystem::path json;      // "": none
};

// "forward=610 TFLOP/s of ..., ...": the names for --rate with their defaults.
std::string rates_help();

// Prints what a rank holds, sends and computes. Throws UserError(ExitCode::config) when it does not
// fit.
int run_plan(const PlanRequest& request);

}  // namespace qpipe
