// qpipe push: a quantized folder to the Hugging Face hub.
#pragma once

#include <filesystem>

#include "pipeline/data/hub.h"

namespace qpipe {

struct PushRequest {
  std::filesystem::path folder;
  PushTarget target;
};

// Pushes what qpipe_files.json names, after verify_checkpoint has found no fault. Prints the
// address. Throws UserError: data where verify finds a fault, which are told, or a file is not as
// it was written (README.md may be changed); else as push_files.
int run_push(const PushRequest& request);

}  // namespace qpipe
