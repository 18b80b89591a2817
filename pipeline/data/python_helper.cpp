#include "pipeline/data/python_helper.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "pipeline/files/error.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

// With a slash: a path, which must not depend on the folder that the helper runs in.
std::string find_python() {
  if (const char* chosen = std::getenv("QPIPE_PYTHON"); chosen != nullptr && *chosen != '\0')
    return std::strchr(chosen, '/') == nullptr ? chosen : absolute_path(chosen);
  const fs::path environment = fs::path(QPIPE_SOURCE) / ".venv/bin/python";
  return access(environment.c_str(), X_OK) == 0 ? environment.string() : "python3";
}

}  // namespace

std::string absolute_path(const fs::path& path) {
  std::error_code error;
  const fs::path result = fs::absolute(path, error);
  if (error)
    throw UserError(ExitCode::no_input, fmt::format("{}: the current folder is gone ({}); change "
                                                    "to another one",
                                                    path.string(), error.message()));
  return result.string();
}

fs::path installed_share() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path().parent_path() / "share/qpipe";
}

fs::path python_helper() {
  std::error_code error;
  const fs::path installed = installed_share() / "helper";
  const fs::path source = fs::path(QPIPE_SOURCE) / "scripts/helper";
  for (const fs::path& path : {installed, source})
    if (fs::is_regular_file(path / "__main__.py", error)) return path;
  throw UserError(ExitCode::unavailable,
                  fmt::format("the Python helper is missing: neither {} nor {} is there; install "
                              "qpipe again, or give token ids (.h5)",
                              installed.string(), source.string()));
}

std::vector<fs::path> python_helper_files() {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(python_helper()))
    if (entry.path().extension() == ".py") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

ChildProgram python_program(const std::vector<std::string>& words) {
  ChildProgram program;
  program.arguments = {find_python(), "-I", "-B", python_helper().string()};
  program.arguments.insert(program.arguments.end(), words.begin(), words.end());
  return program;
}

std::vector<std::string> variables_that_are_set(const std::vector<std::string>& names) {
  std::vector<std::string> variables;
  for (const std::string& name : names)
    if (const char* value = std::getenv(name.c_str())) variables.push_back(name + "=" + value);
  return variables;
}

std::string last_line(std::string text) {
  text.erase(text.find_last_not_of(" \n\r\t") + 1);
  return text.substr(text.find_last_of('\n') + 1);
}

}  // namespace qpipe
