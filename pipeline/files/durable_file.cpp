#include "pipeline/files/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "pipeline/files/error.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void fail(const fs::path& path, const char* what, int error) {
  throw UserError(ExitCode::io, path.string() + ": " + what + ": " + std::strerror(error));
}

}  // namespace

void sync_folder(const fs::path& folder) {
  const int descriptor =
      open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail(folder, "cannot be opened", errno);
  const int error = fsync(descriptor) == 0 ? 0 : errno;
  close(descriptor);
  if (error != 0 && error != EINVAL)
    fail(folder, "cannot be written to disk",
         error);  // EINVAL: the file system does not sync folders
}

namespace {

struct Descriptor {
  int number = -1;
  explicit Descriptor(int opened) : number(opened) {}
  ~Descriptor() {
    if (number >= 0) close(number);
  }
  Descriptor(Descriptor&& other) noexcept : number(std::exchange(other.number, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
};

// Its way to the disk begins.
Descriptor write_text(const fs::path& path, const std::string& text) {
  Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (file.number < 0) fail(path, "cannot create", errno);
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t count = ::write(file.number, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path, "cannot write", errno);
    done += static_cast<std::size_t>(count);
  }
  sync_file_range(file.number, 0, 0, SYNC_FILE_RANGE_WRITE);
  return file;
}

}  // namespace

void write_text_files(const fs::path& folder, const std::vector<TextFile>& files) {
  const auto temporary = [&](const TextFile& file) { return folder / (file.name + ".tmp"); };
  std::vector<Descriptor> written;
  for (const TextFile& file : files) written.push_back(write_text(temporary(file), file.text));
  for (std::size_t i = 0; i < files.size(); ++i)
    if (fsync(written[i].number) != 0) fail(temporary(files[i]), "cannot write", errno);
  for (const TextFile& file : files)
    if (std::rename(temporary(file).c_str(), (folder / file.name).c_str()) != 0)
      fail(folder / file.name, "cannot rename", errno);
  if (!files.empty()) sync_folder(folder);
}

void write_text_file(const fs::path& path, const std::string& text) {
  write_text_files(path.parent_path(), {{path.filename().string(), text}});
}

}  // namespace qpipe
