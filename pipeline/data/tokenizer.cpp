#include "pipeline/data/tokenizer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "pipeline/files/error.h"

namespace qpipe {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little);

namespace {

// $TMPDIR, or /tmp where it is not set or names no folder.
fs::path folder_of_temporary_files() {
  const fs::path usual = "/tmp";
  const char* chosen = std::getenv("TMPDIR");
  std::error_code error;
  if (chosen == nullptr || *chosen == '\0') return usual;
  if (fs::is_directory(chosen, error) && euidaccess(chosen, W_OK | X_OK) == 0) return chosen;
  spdlog::warn("TMPDIR is {}, which is no folder that can be written; {} is taken instead",
               printable(chosen), usual.string());
  return usual;
}

// A temporary folder, removed with all its files.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (folder_of_temporary_files() / "qpipe-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr)
      throw UserError(ExitCode::cannot_create,
                      fmt::format("{}: cannot make a temporary folder: {}; set TMPDIR", name,
                                  std::strerror(errno)));
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

// Each document: its length in bytes, u64, then its text.
void write_text(const std::vector<std::string>& documents, const fs::path& path) {
  std::ofstream file(path, std::ios::binary);
  for (const std::string& document : documents) {
    const std::uint64_t bytes = document.size();
    file.write(reinterpret_cast<const char*>(&bytes), sizeof bytes);
    file.write(document.data(), static_cast<std::streamsize>(bytes));
  }
  if (!file.flush())
    throw UserError(
        ExitCode::io,
        path.string() + ": cannot write the text for the tokenizer; free space or set TMPDIR");
}

std::string read_all(const fs::path& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

std::string last_line(std::string text) {
  text.erase(text.find_last_not_of(" \n\r\t") + 1);
  return text.substr(text.find_last_of('\n') + 1);
}

std::string find_python() {
  if (const char* chosen = std::getenv("QPIPE_PYTHON"); chosen != nullptr && *chosen != '\0')
    return chosen;
  const fs::path environment = fs::path(QPIPE_SOURCE) / ".venv/bin/python";
  return access(environment.c_str(), X_OK) == 0 ? environment.string() : "python3";
}

// Runs `arguments` with its three standard streams in files; returns the exit status, 128 + the
// signal where one ended it.
int run(std::vector<std::string> arguments, const fs::path& in, const fs::path& out,
        const fs::path& errors) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, in.c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out.c_str(), O_WRONLY | O_CREAT, 0600);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, errors.c_str(), O_WRONLY | O_CREAT,
                                   0600);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t child = 0;
  const int error = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0)
    throw UserError(ExitCode::unavailable,
                    fmt::format("cannot run {}: {}; set QPIPE_PYTHON to a Python with the package "
                                "tokenizers, or give token ids (.h5)",
                                arguments[0], std::strerror(error)));
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR)
      throw UserError(ExitCode::os,
                      fmt::format("lost the tokenizer's process: {}", std::strerror(errno)));
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

std::string to_bytes(const TokenizedText& text) {
  const auto documents = static_cast<std::int64_t>(text.counts.size());
  std::string bytes(reinterpret_cast<const char*>(&documents), sizeof documents);
  bytes.append(reinterpret_cast<const char*>(text.counts.data()),
               text.counts.size() * sizeof(std::int64_t));
  bytes.append(reinterpret_cast<const char*>(text.ids.data()),
               text.ids.size() * sizeof(std::int32_t));
  return bytes;
}

std::optional<TokenizedText> from_bytes(const std::string& bytes) {
  std::uint64_t documents = 0;
  if (bytes.size() < sizeof documents) return std::nullopt;
  std::memcpy(&documents, bytes.data(), sizeof documents);
  const std::size_t body = bytes.size() - sizeof documents;
  if (documents > body / sizeof(std::int64_t)) return std::nullopt;
  const std::size_t counts_bytes = documents * sizeof(std::int64_t);
  TokenizedText text;
  text.counts.resize(documents);
  if (counts_bytes != 0)
    std::memcpy(text.counts.data(), bytes.data() + sizeof documents, counts_bytes);
  const std::size_t ids = (body - counts_bytes) / sizeof(std::int32_t);
  std::uint64_t expected = 0;
  for (const std::int64_t count : text.counts) {
    if (count < 0 || static_cast<std::uint64_t>(count) > ids - expected) return std::nullopt;
    expected += static_cast<std::uint64_t>(count);
  }
  if (expected * sizeof(std::int32_t) != body - counts_bytes) return std::nullopt;
  text.ids.resize(ids);
  if (ids != 0)
    std::memcpy(text.ids.data(), bytes.data() + sizeof documents + counts_bytes,
                ids * sizeof(std::int32_t));
  return text;
}

fs::path tokenizer_helper() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  const fs::path installed = program.parent_path().parent_path() / "share/qpipe/qpipe_tokenize.py";
  const fs::path source = fs::path(QPIPE_SOURCE) / "scripts/qpipe_tokenize.py";
  for (const fs::path& path : {installed, source})
    if (fs::is_regular_file(path, error)) return path;
  throw UserError(ExitCode::unavailable,
                  fmt::format("the tokenizer's helper is missing: neither {} nor {} is there; "
                              "install qpipe again, or give token ids (.h5)",
                              installed.string(), source.string()));
}

TokenizedText tokenize(const std::vector<std::string>& documents, const fs::path& tokenizer_json,
                       const std::string& source) {
  const ScratchFolder scratch;
  const fs::path text = scratch / "text";
  const fs::path ids = scratch / "ids";
  const fs::path errors = scratch / "errors";
  write_text(documents, text);
  const int status =
      run({find_python(), tokenizer_helper().string(), tokenizer_json.string()}, text, ids, errors);
  if (status != 0) {
    const bool told = status == static_cast<int>(ExitCode::data) ||
                      status == static_cast<int>(ExitCode::unavailable);
    const std::string reason = last_line(read_all(errors));
    throw UserError(told ? static_cast<ExitCode>(status) : ExitCode::software,
                    fmt::format("{}: cannot be tokenized: {}", source,
                                reason.empty() ? fmt::format("exit status {}", status) : reason));
  }
  std::optional<TokenizedText> result = from_bytes(read_all(ids));
  if (!result || result->counts.size() != documents.size())
    throw UserError(ExitCode::io, fmt::format("{}: the tokenizer's answer is cut short; free space "
                                              "in the temporary folder or set TMPDIR",
                                              source));
  return std::move(*result);
}

}  // namespace qpipe
