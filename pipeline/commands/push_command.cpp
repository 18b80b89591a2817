#include "pipeline/commands/push_command.h"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "pipeline/commands/verify.h"
#include "pipeline/files/error.h"
#include "pipeline/files/terminal.h"
#include "pipeline/output/manifest.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void refuse(const fs::path& folder, const std::string& why) {
  throw UserError(ExitCode::data, fmt::format("{}: {}", folder.string(), why));
}

// People write into the card.
bool may_be_changed(const std::string& name) { return name == "README.md"; }

std::vector<std::string> files_to_push(const fs::path& folder) {
  const FileNames names = names_in_manifest(folder);
  if (names.empty())
    refuse(folder, fmt::format("has no {}, by which a finished output of qpipe is known; give the "
                               "folder of a finished run",
                               manifest_name));
  const FileNames as_written = files_of_manifest(folder);
  std::vector<std::string> files{manifest_name};
  for (const std::string& name : names) {
    std::error_code error;
    const bool is_file = fs::is_regular_file(fs::symlink_status(folder / name, error));
    if (!as_written.contains(name) && !(is_file && may_be_changed(name)))
      refuse(folder / name, is_file ? "is not as qpipe wrote it; quantize again, or restore it"
                                    : "is missing; quantize again, or restore it");
    files.push_back(name);
  }
  return files;
}

std::vector<std::string> left_out(const fs::path& folder, const std::vector<std::string>& files) {
  const FileNames pushed(files.begin(), files.end());
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_directory() && !pushed.contains(name)) names.push_back(name);
  }
  return names;
}

}  // namespace

int run_push(const PushRequest& request) {
  const std::vector<std::string> files = files_to_push(request.folder);
  const Verification verification = verify_checkpoint(request.folder);
  for (const std::string& fault : verification.faults) tell(fmt::format("{}\n", printable(fault)));
  if (!verification.faults.empty())
    refuse(request.folder,
           fmt::format("is not pushed: verify finds {} fault{}; mend {} first",
                       verification.faults.size(), verification.faults.size() == 1 ? "" : "s",
                       verification.faults.size() == 1 ? "it" : "them"));
  for (const std::string& name : left_out(request.folder, files))
    tell(fmt::format("note: {} is not qpipe's and stays here\n", printable(name)));
  print_result("{}\n", push_files(request.folder, files, request.target));
  return static_cast<int>(ExitCode::ok);
}

}  // namespace qpipe
