#include "pipeline/files/user_output.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "pipeline/files/durable_file.h"
#include "pipeline/files/error.h"
#include "pipeline/files/write_fault.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void refuse(const fs::path& path, const std::string& what) {
  throw UserError(ExitCode::cannot_create,
                  fmt::format("{}: {}; give the name of a file", path.string(), what));
}

// The descriptor of this process's own output that the file is, or -1.
int own_output(const struct stat& file) {
  for (const int descriptor : {STDOUT_FILENO, STDERR_FILENO}) {
    struct stat own {};
    if (fstat(descriptor, &own) == 0 && own.st_dev == file.st_dev && own.st_ino == file.st_ino)
      return descriptor;
  }
  return -1;
}

// Opens without waiting for a reader; writes wait for one.
int open_to_stream(const fs::path& path) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (descriptor < 0 && errno == ENXIO) refuse(path, "nobody reads from it");
  if (descriptor < 0)
    throw UserError(ExitCode::io,
                    fmt::format("{}: cannot be opened: {}", path.string(), write_fault(errno)));
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) & ~O_NONBLOCK);
  return descriptor;
}

void write_through(const fs::path& path, int descriptor, const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t count = write(descriptor, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0)
      throw UserError(ExitCode::io,
                      fmt::format("{}: cannot write: {}", path.string(), write_fault(errno)));
    done += static_cast<std::size_t>(count);
  }
}

bool is_streamed(const struct stat& status) {
  return S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode) || own_output(status) >= 0;
}

}  // namespace

void check_writable(const fs::path& folder, const std::string& key) {
  std::error_code error;
  fs::path nearest = folder.empty() ? fs::path(".") : folder;
  while (!fs::exists(fs::symlink_status(nearest, error)))
    nearest = nearest.parent_path().empty() ? fs::path(".") : nearest.parent_path();
  if (!fs::is_directory(nearest, error))
    throw UserError(
        ExitCode::cannot_create,
        fmt::format("{}: exists and is not a folder; choose another {}", nearest.string(), key));
  if (euidaccess(nearest.c_str(), W_OK | X_OK) != 0)
    throw UserError(ExitCode::cannot_create,
                    fmt::format("{}: is not writable: {}; choose another {}", nearest.string(),
                                std::strerror(errno), key));
}

void check_user_output(const fs::path& path, const std::string& key) {
  struct stat status {};
  if (stat(path.c_str(), &status) == 0 && is_streamed(status)) return;
  check_writable(user_output_file(path).parent_path(), key);
}

void write_user_output(const fs::path& path, const std::string& text) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0 || !is_streamed(status)) {
    const fs::path file = user_output_file(path);
    std::error_code error;  // told by the write
    fs::create_directories(file.parent_path(), error);
    return write_text_file(file, text);
  }
  if (const int own = own_output(status); own >= 0) {
    std::fflush(nullptr);  // behind what is printed already
    return write_through(path, own, text);
  }
  const int descriptor = open_to_stream(path);
  try {
    write_through(path, descriptor, text);
  } catch (...) {
    close(descriptor);
    throw;
  }
  close(descriptor);
}

fs::path user_output_file(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) refuse(path, "is a folder");
  if (fs::exists(status) && !fs::is_regular_file(status)) refuse(path, "is no regular file");
  if (!fs::is_symlink(fs::symlink_status(path, error))) return path;
  const fs::path target = fs::weakly_canonical(path, error);
  if (error) refuse(path, "is a link that leads nowhere");
  return target;
}

}  // namespace qpipe
