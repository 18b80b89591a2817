#include "pipeline/journal/run_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <string_view>

#include "pipeline/files/error.h"
#include "pipeline/files/write_fault.h"

namespace qpipe {

namespace {

constexpr std::chrono::seconds period{2};
constexpr std::chrono::seconds patience{5};  // more than two beats

std::string this_host() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "?";
}

// A fresh descriptor, so that a network file system asks its server.
std::string read_line(const std::filesystem::path& path) {
  std::array<char, 512> text{};
  const int file = open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return {};
  const ssize_t count = read(file, text.data(), text.size());
  close(file);
  return {text.data(), count > 0 ? static_cast<std::size_t>(count) : 0};
}

bool is_at(const std::filesystem::path& path, int descriptor) {
  struct stat named {};
  struct stat opened {};
  return stat(path.c_str(), &named) == 0 && fstat(descriptor, &opened) == 0 &&
         named.st_ino == opened.st_ino;
}

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// "HOST PID COUNT\n", or nothing yet: what a run writes. Any other file is somebody else's.
bool is_lock(int descriptor, const std::string& text, bool any_text) {
  struct stat status {};
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) return false;
  if (any_text) return true;
  if (text.empty()) return status.st_size == 0;
  const std::size_t host = text.find(' ');
  const std::size_t process = text.find(' ', host + 1);
  return static_cast<std::size_t>(status.st_size) == text.size() && text.back() == '\n' &&
         host != std::string::npos && process != std::string::npos &&
         is_number(std::string_view(text).substr(host + 1, process - host - 1)) &&
         is_number(std::string_view(text).substr(process + 1, text.size() - process - 2));
}

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& line) {
  const std::string host = line.substr(0, line.find(' '));
  const std::string rest = line.size() > host.size() ? line.substr(host.size() + 1) : "";
  throw UserError(ExitCode::cannot_create,
                  fmt::format("{}: another run works here (process {} on {}); wait for its end, or "
                              "choose another output.path",
                              path.parent_path().string(), rest.substr(0, rest.find(' ')), host));
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& path, Name whose) : path_(path) {
  std::string line;
  bool locked = false;
  bool refused = false;
  do {
    if (descriptor_ >= 0) close(descriptor_);
    descriptor_ = open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    if (descriptor_ < 0)
      throw UserError(ExitCode::cannot_create,
                      path.string() + ": cannot create: " + write_fault(errno));
    line = read_line(path);
    locked = flock(descriptor_, LOCK_EX | LOCK_NB) == 0;
    refused = !locked && errno == EWOULDBLOCK;
  } while (locked &&
           !is_at(path, descriptor_));  // a run that ended just now has taken the file away
  // A run that ends writes nothing while it is read: the file is looked at once more.
  if (is_at(path, descriptor_) &&
      !is_lock(descriptor_, line = read_line(path), whose == Name::of_qpipe)) {
    close(descriptor_);
    throw UserError(
        ExitCode::cannot_create,
        path.string() + ": is not the lock of a run; move it, or choose another folder");
  }
  bool alive = refused;
  if (!refused && !line.empty() && (!locked || line.substr(0, line.find(' ')) != this_host())) {
    std::this_thread::sleep_for(patience);
    alive = read_line(path) != line;
  }
  if (alive) {
    close(descriptor_);
    refuse(path, line);
  }
  heart_ = std::thread([this] { beat(); });
}

void RunLock::beat() {
  std::unique_lock lock(mutex_);
  for (std::int64_t count = 0; !stop_; ++count) {
    const std::string line = fmt::format("{} {} {:010}\n", this_host(), getpid(), count);
    // A full disk must not end a run that writes nothing else just now.
    if (pwrite(descriptor_, line.data(), line.size(), 0) > 0) [[maybe_unused]]
      const int ignored = ftruncate(descriptor_, static_cast<off_t>(line.size()));
    stopping_.wait_for(lock, period, [this] { return stop_; });
  }
}

RunLock::~RunLock() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stopping_.notify_all();
  heart_.join();
  unlink(path_.c_str());
  close(descriptor_);
}

}  // namespace qpipe
