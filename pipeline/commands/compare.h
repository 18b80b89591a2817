// qpipe compare: one model, several methods, one table.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "pipeline/options/options.h"

namespace qpipe {

// An entry of --methods.
struct CompareMethod {
  std::string label;              // "gptq:act_group_aware=true,mse=2.4"
  std::string method;             // "gptq"
  std::vector<std::string> sets;  // its settings as --set takes them:
                                  // "quantize.act_group_aware=true", "quantize.mse=2.4"
};

// "gptq,gptq:act_group_aware=true,mse=2.4,awq:grid=10,rtn": names of quantize.method divided by
// commas, each with settings after a colon, which are keys of [quantize], [awq] or [bnb] without
// the section. Throws UserError(usage): an unknown name or key (with a suggestion), a key without
// effect on the method, an entry that is there twice.
std::vector<CompareMethod> read_methods(const std::string& text);

// What to append to output.path for a method: "gptq-mse-2.4".
std::string folder_suffix(const CompareMethod& method);

struct CompareRequest {
  std::vector<CompareMethod> methods;
  std::vector<Options> options;  // of each method: output.path is OUTPUT-SUFFIX
  std::filesystem::path stem;    // the table goes to STEM.json and STEM.md
  bool dry_run = false;
};

// The configuration with `sets` applied, and then each method and its settings. out: the stem; "":
// OUTPUT.compare. Throws UserError as load_options and read_methods; config without evaluate.data;
// cannot_create when an output folder is in use or out's folder is absent.
CompareRequest read_compare(const std::filesystem::path& config, const std::string& methods,
                            const std::vector<std::string>& sets, const std::string& out);

// Collective over all ranks of MPI_COMM_WORLD. All methods are checked against the model before the
// first one runs; the original is evaluated once. Rank 0 prints the table on stdout; its files are
// written anew after each method, so that a fault leaves the rows before it. Returns the exit code;
// throws as quantize.
int run_compare(const CompareRequest& request);

}  // namespace qpipe
