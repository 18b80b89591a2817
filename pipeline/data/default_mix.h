// What is calibrated on where the user says nothing: prose, code and chats, which qpipe ships.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace qpipe {

struct MixFile {
  std::filesystem::path data;
  double share = 1.0;
};

// data/ of the source tree, or ../share/qpipe/data beside the program's folder. Without the chats
// for a model that has no chat template. Throws UserError when a file is not there.
std::vector<MixFile> default_mix(const std::filesystem::path& model);

}  // namespace qpipe
