// Whose files stand in the output folder, and what a run may do with them: it removes what qpipe
// wrote, keeps what is somebody else's, and refuses what it would have to replace or what a loader
// would take for a part of the checkpoint.
#pragma once

#include <filesystem>
#include <string>

#include "pipeline/output/manifest.h"

namespace qpipe {

// Who works here; there while a run goes on.
inline constexpr const char* output_lock_name = ".qpipe.lock";

struct OutputFolder {
  std::filesystem::path path;
  FileNames written;  // by this run, in the end
  // By an unfinished run of before, as its run folder tells; with ".tmp" behind shards.
  FileNames unfinished;
  bool overwrite = false;  // output.overwrite
};

// Throws UserError(cannot_create) where the run cannot have this folder: it is no folder, cannot be
// made or written, or holds files that stay in the way. Changes nothing.
void check_output_folder(const OutputFolder& output);

// The same; then makes the folder, and removes what qpipe wrote. Rank 0 only.
void prepare_output_folder(const OutputFolder& output);

}  // namespace qpipe
