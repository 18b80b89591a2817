// The run folder: what an unfinished run has done, so that the same command goes on with it.
//
// clang-format off
//   run.json                          identity: configuration, inputs and build; written before
//                                     the first tensor, removed first at the end
//   output.json                       the names that the run may write in the output folder, none
//                                     of which somebody else's file had
//   found-KEY.json                    a value that need not be found again
//   layer-00007.2-of-4.json           part 2 of 4 of layer 7 is finished: the tensors it wrote into
//                                     the shards (OUTPUT/*.safetensors.tmp) with their XXH3, and
//                                     what the run must remember of the layer
//   layer-00007.2-of-4.safetensors    tensors of that part whose form is decided at the end (zeros
//                                     for format gptq)
//   lock                              who works here
// clang-format on
//
// A layer is finished when all parts of it, for one number of parts, are there and every tensor
// they name has its hash. Records are written once, after their tensors are on disk, through a
// temporary file, fsync, rename and fsync of the folder; no file is ever changed. So whenever a run
// is killed, what stands in the folder is true, and what is not true (a lost page, a deleted shard)
// is found by its hash and done again. Activations are not stored: they are computed again from the
// finished layers (pipeline/layers/fast_forward.h).
//
// At the end OUTPUT.run.finished stands beside the folder while the folder is removed: a run that
// is killed then is complete, and says so when it is started again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/comm.h"
#include "pipeline/journal/run_lock.h"
#include "pipeline/options/options.h"
#include "pipeline/output/output_folder.h"

namespace qpipe {

struct LayerRecord {
  std::int64_t layer = 0;
  int part = 0;  // of `parts`: one for each rank that works on the layer
  int parts = 1;
  std::map<std::string, std::string> tensors;  // name → XXH3, in the shards
  std::map<std::string, std::string> held;     // name → XXH3, in the file beside the record
  nlohmann::json findings;                     // of the layer, in part 0

  std::string stem() const;  // "layer-00007.2-of-4"
};

std::string to_text(const LayerRecord& record);
// Throws std::exception when the text is not to the bit what to_text wrote.
LayerRecord parse_record(const std::string& text);

class Journal {
 public:
  // Collective. Locks the run folder and the output folder, compares identities and makes the
  // output folder ready, or leaves it as it is for a run that goes on. output_files: what the run
  // may write there (rank 0). Throws UserError on all ranks: another run works here; the unfinished
  // run differs, or is another build's and run.allow_other_build is not set; run.resume = "require"
  // and there is nothing to go on with; as prepare_output_folder.
  Journal(const Options& options, const nlohmann::json& identity, const FileNames& output_files,
          Comm& comm);

  const std::filesystem::path& folder() const { return folder_; }
  bool resumed() const { return resumed_; }
  // The output is there, whole, from a run of the same identity that was killed when only its run
  // folder was left to remove; nothing of it is left now.
  bool complete() const { return complete_; }
  // The builds that have worked on the output, this one last.
  const nlohmann::json& builds() const { return builds_; }
  // Those of the earlier run that can be read, on every rank.
  const std::vector<LayerRecord>& records() const { return records_; }

  // A value that the run need not find again (rank 0 writes; the last run's on every rank, else
  // null).
  void remember(const std::string& key, const nlohmann::json& value, Comm& comm);
  nlohmann::json remembered(const std::string& key) const {
    return remembered_.value(key, nlohmann::json());
  }

  // The run is complete: removes the folder. Rank 0 only.
  void remove();

 private:
  std::filesystem::path folder_;
  nlohmann::json identity_;
  std::filesystem::path output_;
  bool resumed_ = false;
  bool complete_ = false;
  nlohmann::json builds_ = nlohmann::json::array();
  std::vector<LayerRecord> records_;
  nlohmann::json remembered_ = nlohmann::json::object();
  std::unique_ptr<RunLock> lock_;         // rank 0
  std::unique_ptr<RunLock> output_lock_;  // rank 0
};

// Throws UserError where a Journal of these options could not be made, as far as can be told before
// the inputs are read. Changes nothing. Rank 0 only.
void check_folders(const Options& options, const FileNames& output_files);

}  // namespace qpipe
