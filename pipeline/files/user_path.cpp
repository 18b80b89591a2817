#include "pipeline/files/user_path.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "pipeline/files/error.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

std::string from_home(const std::string& text, const std::string& where) {
  if (text != "~" && !text.starts_with("~/"))
    throw UserError(ExitCode::config,
                    fmt::format("{}: {}: of paths with ~ only ~/ is known; write the folder in "
                                "full, or ./{} for a name that begins so",
                                where, text, text));
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home != '/')
    throw UserError(ExitCode::config,
                    fmt::format("{}: {}: HOME is not set; write the folder in full", where, text));
  return home + text.substr(1);
}

}  // namespace

std::string user_path(const std::string& text, const std::string& where) {
  const std::string path = text.starts_with('~') ? from_home(text, where) : text;
  if (path.empty()) return path;
  std::string result = path.starts_with('/') ? "/" : "";
  for (const fs::path& part : fs::path(path)) {
    const std::string name = part.string();
    if (name.empty() || name == "/" || name == "//" || (name == "." && !result.empty())) continue;
    if (!result.empty() && result.back() != '/') result += '/';
    result += name;
  }
  return result.empty() ? "." : result;
}

std::string beside(const std::string& path, const std::string& ending) {
  const std::string plain = user_path(path.starts_with('~') ? "./" + path : path, "path");
  const std::string name = fs::path(plain).filename().string();
  if (name != "." && name != "..") return plain + ending;
  std::error_code error;
  const fs::path folder = fs::weakly_canonical(fs::absolute(plain, error), error);
  return user_path(folder.string(), "path") + ending;
}

}  // namespace qpipe
