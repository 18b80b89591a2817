#include "pipeline/files/new_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <random>
#include <utility>

#include "pipeline/files/error.h"
#include "pipeline/files/write_fault.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view prefix = ".qpipe-";
constexpr std::string_view suffix = ".tmp";
constexpr std::size_t digits = 16;

[[noreturn]] void fail(const fs::path& path, const char* what, int error) {
  throw UserError(ExitCode::io, fmt::format("{}: {}: {}", path.string(), what, write_fault(error)));
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISLNK(mode)) return "a link";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

}  // namespace

fs::path temporary_beside(const fs::path& path) {
  static std::random_device random;
  return path.parent_path() / fmt::format("{}{:08x}{:08x}{}", prefix, random(), random(), suffix);
}

bool is_temporary_name(const std::string& name) {
  if (name.size() != prefix.size() + digits + suffix.size() || !name.starts_with(prefix) ||
      !name.ends_with(suffix))
    return false;
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return std::all_of(name.begin() + prefix.size(), name.end() - suffix.size(), is_digit);
}

int open_new(const fs::path& path, unsigned rights) {
  return open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, rights);
}

void check_replaceable(const fs::path& path) {
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0 || S_ISREG(status.st_mode)) return;
  throw UserError(ExitCode::cannot_create,
                  fmt::format("{}: is {}, which is not replaced by a file; move it, or choose "
                              "another name",
                              path.string(), kind_of(status.st_mode)));
}

void remove_temporaries(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error))
    if (is_temporary_name(entry->path().filename().string())) unlink(entry->path().c_str());
}

NewFile::NewFile(fs::path path, Rights rights)
    : path_(std::move(path)), temporary_(temporary_beside(path_)) {
  check_replaceable(path_);
  descriptor_ = open_new(temporary_, rights == Rights::umask ? 0666 : 0644);
  if (descriptor_ < 0) {
    temporary_.clear();
    fail(path_, "cannot create", errno);
  }
}

NewFile::NewFile(NewFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

NewFile::~NewFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void NewFile::write(const void* data, std::size_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = ::write(descriptor_, from, bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, "cannot write", errno);
    from += count;
    bytes -= static_cast<std::size_t>(count);
  }
}

void NewFile::start_sync() { sync_file_range(descriptor_, 0, 0, SYNC_FILE_RANGE_WRITE); }

void NewFile::sync() {
  if (fsync(descriptor_) != 0) fail(path_, "cannot write", errno);
}

void NewFile::publish() {
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "cannot rename", errno);
  temporary_.clear();
}

}  // namespace qpipe
