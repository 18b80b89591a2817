#include "pipeline/files/input_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "pipeline/files/error.h"

namespace qpipe {

namespace {

constexpr std::string_view lfs_pointer = "version https://git-lfs";

std::string advice_for(int error) {
  switch (error) {
    case ENOENT: return "; check the path";
    case EACCES: return "; give this user the right to read it";
    case ELOOP: return "; a link is not followed here: put the file itself there";
    case EMFILE: return "; raise the limit of open files (ulimit -n)";
    default: return "";
  }
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

}  // namespace

InputFile::InputFile(const std::filesystem::path& path, Links links) : path_(path) {
  // O_NONBLOCK: opening a FIFO without a writer would wait for ever.
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY |
                                       (links == Links::refuse ? O_NOFOLLOW : 0));
  if (descriptor_ < 0) {
    const int error = errno;
    throw UserError(ExitCode::no_input, fmt::format("{}: cannot be opened: {}{}", path.string(),
                                                    std::strerror(error), advice_for(error)));
  }
  const auto refuse = [this](ExitCode code, const std::string& fault) {
    close(std::exchange(descriptor_, -1));
    throw UserError(code, path_.string() + ": " + fault);
  };
  struct stat status {};
  if (fstat(descriptor_, &status) != 0)
    refuse(ExitCode::os, std::string("cannot be examined: ") + std::strerror(errno));
  if (!S_ISREG(status.st_mode))
    refuse(ExitCode::no_input, fmt::format("is {}; put the file itself or a link to it there",
                                           kind_of(status.st_mode)));
  bytes_ = status.st_size;

  std::string start(lfs_pointer.size(), '\0');
  const ssize_t count = pread(descriptor_, start.data(), start.size(), 0);
  if (count == static_cast<ssize_t>(start.size()) && start == lfs_pointer)
    refuse(ExitCode::no_input,
           "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder");
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      bytes_(other.bytes_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  path_.swap(other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void InputFile::read(void* to, std::int64_t count, std::int64_t offset,
                     const std::string& part) const {
  auto* bytes = static_cast<char*>(to);
  for (std::int64_t done = 0; done < count;) {
    const ssize_t got =
        pread(descriptor_, bytes + done, static_cast<std::size_t>(count - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      throw UserError(ExitCode::io, fmt::format("{}: {}: cannot be read: {}", path_.string(), part,
                                                std::strerror(errno)));
    if (got == 0)
      throw UserError(
          ExitCode::data,
          fmt::format(
              "{}: {}: the file is truncated: it ends at byte {} of {}; copy or download it again",
              path_.string(), part, offset + done, offset + count));
    done += got;
  }
}

std::string read_text_file(const std::filesystem::path& path, std::int64_t most_bytes,
                           InputFile::Links links) {
  const InputFile file(path, links);
  if (file.bytes() > most_bytes)
    throw UserError(ExitCode::data, fmt::format("{}: has {} bytes, which no file of this kind "
                                                "needs (limit {}); restore the original file",
                                                path.string(), file.bytes(), most_bytes));
  std::string text(static_cast<std::size_t>(file.bytes()), '\0');
  file.read(text.data(), file.bytes(), 0, "text");
  return text;
}

}  // namespace qpipe
