#include "pipeline/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "pipeline/error.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void fail(const fs::path& path, const char* what, int error) {
  throw UserError(ExitCode::io, path.string() + ": " + what + ": " + std::strerror(error));
}

}  // namespace

void sync_folder(const fs::path& folder) {
  const int descriptor = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail(folder, "cannot be opened", errno);
  const int error = fsync(descriptor) == 0 ? 0 : errno;
  close(descriptor);
  if (error != 0 && error != EINVAL) fail(folder, "cannot be written to disk", error);  // EINVAL: the file system does not sync folders
}

void write_text_file(const fs::path& path, const std::string& text) {
  const fs::path temporary = path.string() + ".tmp";
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) fail(temporary, "cannot create", errno);
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::write(file, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int error = errno;
      close(file);
      fail(temporary, "cannot write", error);
    }
    done += static_cast<std::size_t>(count);
  }
  const bool synced = fsync(file) == 0;
  const int error = errno;
  close(file);
  if (!synced) fail(temporary, "cannot write", error);
  if (std::rename(temporary.c_str(), path.c_str()) != 0) fail(path, "cannot rename", errno);
  sync_folder(path.parent_path());
}

}  // namespace qpipe
