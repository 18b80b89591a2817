// The names in a run folder, and what of them is removed.
#pragma once

#include <filesystem>
#include <string>

#include "pipeline/options/options.h"

namespace qpipe {

inline constexpr const char* run_file = "run.json";        // identity
inline constexpr const char* output_file = "output.json";  // what the run writes into the output
inline constexpr const char* lock_file = "lock";

// OUTPUT.run beside the output folder, or run.folder.
std::filesystem::path run_folder(const Options& options);

// OUTPUT.run.finished beside the run folder: the output is complete and the run folder is being
// removed. The last file of a run to go.
std::filesystem::path finished_mark(const std::filesystem::path& run_folder);

// "layer-00007.2-of-4.json".
bool is_record_name(const std::string& name);
// "found-KEY.json".
std::string memory_name(const std::string& key);
bool is_memory_name(const std::string& name);

// Throws UserError(cannot_create) where something other than a regular file (a FIFO, a folder, a
// link), or somebody else's text, has a name that runs write, before a run would meet it in its
// midst.
void check_run_folder(const std::filesystem::path& folder);

// Removes what runs wrote in the folder but the lock, run.json first, so that nothing is believed
// if this is interrupted. Other files stay. Throws UserError(io).
void clear_run_folder(const std::filesystem::path& folder);

}  // namespace qpipe
