#include "pipeline/data/hdf5_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <string_view>
#include <utility>

#include "pipeline/data/child_process.h"
#include "pipeline/data/dataset.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/user_output.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

// Beside this program, where it is installed, or where it was built.
fs::path helper() {
  std::error_code error;
  const fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  const fs::path built = QPIPE_HDF5;
  for (const fs::path& path :
       {folder / "qpipe_hdf5", folder.parent_path() / "libexec/qpipe/qpipe_hdf5", built})
    if (access(path.c_str(), X_OK) == 0) return path;
  throw UserError(ExitCode::unavailable,
                  fmt::format("{}: the program for HDF5 files is missing; install qpipe "
                              "again, or give token ids as .safetensors",
                              (folder / "qpipe_hdf5").string()));
}

std::size_t half_of_memory() {
  return static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) / 2 *
         static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

std::chrono::seconds patience(std::size_t bytes) {
  constexpr std::size_t slow_disk = 1 << 20;  // bytes of a second
  return std::chrono::seconds(120 + bytes / slow_disk);
}

std::string fault_of(const ChildResult& result) {
  constexpr const char* anew = "write the tokens anew";
  switch (result.end) {
    case ChildResult::End::timeout:
      return fmt::format("reading it does not come to an end; {}", anew);
    case ChildResult::End::too_much_output:
      return "has more token ids than this machine's memory holds; ask for fewer samples";
    case ChildResult::End::killed:
      if (result.status == SIGXCPU)
        return fmt::format("reading it does not come to an end; {}", anew);
      return fmt::format("libhdf5 crashed on it (signal {}); {}", result.status, anew);
    case ChildResult::End::exited: break;
  }
  if (result.status == 0) return {};
  const std::string_view said(result.errors);
  if (result.status == static_cast<int>(ExitCode::data) && !said.empty())
    return std::string(said.substr(0, said.find('\n')));
  return fmt::format("libhdf5 crashed on it (exit status {}); {}", result.status, anew);
}

// Moves the front of `bytes` to the values; false where it is too short.
template <class Value>
bool take(std::string_view& bytes, Value* values, std::size_t count) {
  if (count > bytes.size() / sizeof(Value)) return false;
  bytes.copy(reinterpret_cast<char*>(values), count * sizeof(Value));
  bytes.remove_prefix(count * sizeof(Value));
  return true;
}

}  // namespace

Hdf5Ids read_hdf5(const fs::path& path, const std::string& dataset, std::int64_t samples,
                  std::int64_t seqlen) {
  const InputFile readable(path);  // says better than HDF5 why a file cannot be read
  const std::string where = fmt::format("{} ({})", path.string(), dataset);
  const auto refuse = [&](const std::string& fault) {
    throw UserError(ExitCode::data, where + ": " + fault);
  };
  // The name goes through an argument of the program.
  if (dataset.find('\0') != std::string::npos) refuse("no dataset has a NUL in its name");
  ChildProgram program;
  program.arguments = {helper().string(), dataset, std::to_string(samples), std::to_string(seqlen)};
  program.input_file = path;
  program.most_output = half_of_memory();
  program.timeout = patience(static_cast<std::size_t>(readable.bytes()));
  const ChildResult result = run_child(program, "install qpipe again");
  if (const std::string fault = fault_of(result); !fault.empty()) refuse(fault);

  std::string_view bytes(result.output);
  std::int64_t rank = -1;
  constexpr std::int64_t most_rank = 32;
  Hdf5Ids found;
  bool whole = take(bytes, &rank, 1) && rank >= 0 && rank <= most_rank;
  if (whole) {
    found.sizes.resize(static_cast<std::size_t>(rank));
    whole = take(bytes, found.sizes.data(), found.sizes.size());
  }
  found.ids.resize(bytes.size() / sizeof(std::int32_t));
  if (!whole || !take(bytes, found.ids.data(), found.ids.size()) || !bytes.empty())
    refuse("its reader gave half an answer; write the tokens anew");
  return found;
}

void write_tokens_hdf5(const Tokens& tokens, const fs::path& path, const std::string& dataset) {
  const auto refuse = [&](std::string_view fault) {
    throw UserError(ExitCode::cannot_create, fmt::format("{}: {}; choose another place or free "
                                                         "space",
                                                         path.string(), fault));
  };
  if (dataset.find('\0') != std::string::npos) refuse("no dataset has a NUL in its name");
  const fs::path file = fs::absolute(user_output_file(path));
  const fs::path temporary = temporary_beside(file);
  std::error_code error;
  try {
    ChildProgram program;
    program.arguments = {helper().string(), dataset, std::to_string(tokens.samples),
                         std::to_string(tokens.seqlen), temporary.string()};
    bool sent = false;
    program.next_input = [&]() -> std::string_view {
      if (std::exchange(sent, true)) return {};
      return {reinterpret_cast<const char*>(tokens.ids.data()),
              tokens.ids.size() * sizeof(std::int32_t)};
    };
    program.timeout = patience(tokens.ids.size() * sizeof(std::int32_t));
    const ChildResult result = run_child(program, "install qpipe again");
    if (result.end != ChildResult::End::exited || result.status != 0)
      refuse(result.errors.empty()
                 ? "cannot be written"
                 : std::string_view(result.errors).substr(0, result.errors.find('\n')));
    fs::rename(temporary, file, error);
    if (error) refuse("cannot be replaced");
  } catch (...) {
    fs::remove(temporary, error);
    throw;
  }
}

}  // namespace qpipe
