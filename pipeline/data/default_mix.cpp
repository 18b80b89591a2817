#include "pipeline/data/default_mix.h"

#include <fmt/format.h>

#include "pipeline/data/python_helper.h"
#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

// Where scripts/helper/chat_template.py looks for it.
bool has_chat_template(const fs::path& model) {
  std::error_code error;
  if (fs::exists(model / "chat_template.jinja", error)) return true;
  for (const char* name : {"tokenizer_config.json", "chat_template.json"})
    if (fs::exists(model / name, error) && read_json_object(model / name).contains("chat_template"))
      return true;
  return false;
}

fs::path folder_of_mix() {
  std::error_code error;
  const fs::path installed = installed_share() / "data";
  return fs::is_directory(installed, error) ? installed : fs::path(QPIPE_SOURCE) / "data";
}

}  // namespace

std::vector<MixFile> default_mix(const fs::path& model) {
  const fs::path folder = folder_of_mix();
  std::vector<MixFile> files{{folder / "emma.txt.gz", 2.0}, {folder / "code.txt.gz", 1.0}};
  if (has_chat_template(model)) files.push_back({folder / "chats.jsonl", 1.0});
  std::error_code error;
  for (const MixFile& file : files)
    if (!fs::exists(file.data, error))
      throw UserError(ExitCode::no_input,
                      fmt::format("calibration.data is not set, and {} of the mix that qpipe ships "
                                  "is not there; give text or token ids, or install qpipe again",
                                  file.data.string()));
  return files;
}

}  // namespace qpipe
