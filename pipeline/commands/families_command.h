// qpipe families: the model_types that are read, and what a model's layers are.
#pragma once

#include <filesystem>
#include <vector>

namespace qpipe {

struct FamiliesRequest {
  std::vector<std::filesystem::path> models;  // folders with a config.json
  bool json = false;
};

// Prints on stdout; of the folders config.json alone is read. --json: {"families": [model_type, …],
// "models": [{"folder", "model_type", "kinds"}, …]}. Returns the exit code; throws as
// read_architecture().
int run_families(const FamiliesRequest& request);

}  // namespace qpipe
