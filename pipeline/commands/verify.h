// qpipe verify: a quantized folder against its format, on the CPU of one process.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/output/loaders.h"

namespace qpipe {

struct VerifyRequest {
  std::filesystem::path folder;
  std::filesystem::path original;  // empty: no weight errors
  std::filesystem::path json;      // file for the report; empty: none
};

struct Verification {
  StoredFormat format = StoredFormat::unquantized;
  std::vector<std::string> faults;  // one line each, naming file and tensor
  std::vector<std::string> notes;   // what is allowed, but worth knowing
  std::vector<LinearReport> linears;
  double bits_per_weight = 0.0;  // of all linears in the decoder layers
  std::vector<Loader> loaders;
};

// Checks the folder: keys of config.json against the format and the tensors; presence, shape and
// dtype of every tensor; every scale and unquantized weight finite; linears that vLLM fuses (q, k,
// v; gate, up) of one kind, and of one NVFP4 global scale; GPTQ v1 zeros that do not wrap; the
// index and no stale shards; quantize_config.json; tied embeddings. With `original` also ‖W − Q‖ /
// ‖W‖ of packed linears, and every tensor of the original that is not there or has changed
// (verify_original.h). A fault in a file that the rest depends on (index, headers, config.json)
// is the only one. Throws UserError for what cannot be read here.
Verification verify_checkpoint(const std::filesystem::path& folder,
                               const std::filesystem::path& original = {});

// Prints the report on stdout and the faults on stderr. Returns ExitCode::ok or, with faults,
// ExitCode::data.
int run_verify(const VerifyRequest& request);

}  // namespace qpipe
