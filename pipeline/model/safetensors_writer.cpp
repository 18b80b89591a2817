#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "pipeline/files/durable_file.h"
#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/write_fault.h"
#include "pipeline/model/safetensors.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void fail(const fs::path& path, const char* what, int error) {
  throw UserError(ExitCode::io, fmt::format("{}: {}: {}", path.string(), what, write_fault(error)));
}

struct Place {
  std::int64_t offset = 0;  // from the start of the file
  std::int64_t bytes = 0;
  enum { unwritten, started, written } progress = unwritten;
};

struct Layout {
  std::string head;  // the length and the padded header
  std::map<std::string, Place> places;
  std::int64_t file_bytes = 0;
};

Layout lay_out(std::vector<TensorInfo> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return size_of(a.dtype) != size_of(b.dtype) ? size_of(a.dtype) > size_of(b.dtype)
                                                : a.name < b.name;
  });
  Layout layout;
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::int64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    const Place place{end, tensor.bytes()};
    if (tensor.name == "__metadata__" || !layout.places.emplace(tensor.name, place).second)
      throw std::invalid_argument("safetensors: the name " + in_quotes(tensor.name) +
                                  " is reserved or given twice");
    if (__builtin_add_overflow(end, place.bytes, &end))
      throw std::invalid_argument("safetensors: the file's size overflows");
    header += fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                          nlohmann::json(tensor.name).dump(), name_of(tensor.dtype),
                          fmt::join(tensor.shape, ","), place.offset, end);
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  if (header.size() > static_cast<std::size_t>(most_json_bytes))
    throw std::invalid_argument(
        "safetensors: the header is over the format's limit; write more shards");
  for (int shift = 0; shift < 64; shift += 8)
    layout.head += static_cast<char>(std::uint64_t{header.size()} >> shift & 0xff);
  layout.head += header;
  const auto data_begin = static_cast<std::int64_t>(layout.head.size());
  if (__builtin_add_overflow(end, data_begin, &layout.file_bytes))
    throw std::invalid_argument("safetensors: the file's size overflows");
  for (auto& [name, place] : layout.places) place.offset += data_begin;
  return layout;
}

}  // namespace

struct SafetensorsWriter::State {
  fs::path path;
  fs::path temporary;
  Role role = Role::owner;
  int descriptor = -1;
  bool flushed = false;
  bool kept = false;         // stays on disk when it is not finished
  mutable std::mutex mutex;  // guards `places` and `flushed`
  std::map<std::string, Place> places;

  ~State() {
    if (descriptor < 0) return;
    close(descriptor);
    if (role == Role::owner && !kept) unlink(temporary.c_str());
  }

  std::int64_t count_bytes() const {
    std::int64_t bytes = 0;
    for (const auto& [name, place] : places)
      bytes += place.progress == Place::written ? place.bytes : 0;
    return bytes;
  }

  // pwrite from any thread. In pieces: a file takes one write at a time, and each piece starts its
  // way to the disk at once, so that the fsync at the end has little left to do.
  void write_at(const void* data, std::int64_t count, std::int64_t offset) const {
    constexpr std::int64_t piece = std::int64_t{8} << 20;
    const auto* bytes = static_cast<const char*>(data);
    for (std::int64_t done = 0; done < count;) {
      const ssize_t wrote =
          pwrite(descriptor, bytes + done, static_cast<std::size_t>(std::min(piece, count - done)),
                 offset + done);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0) fail(path, "cannot be written", wrote < 0 ? errno : EIO);
      sync_file_range(descriptor, offset + done, wrote, SYNC_FILE_RANGE_WRITE);
      done += wrote;
    }
  }

  // False when the file ends before.
  bool read_at(void* data, std::int64_t count, std::int64_t offset) const {
    for (std::int64_t done = 0; done < count;) {
      const ssize_t got = pread(descriptor, static_cast<char*>(data) + done,
                                static_cast<std::size_t>(count - done), offset + done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(path, "cannot be read", errno);
      if (got == 0) return false;
      done += got;
    }
    return true;
  }

  // Opens `name` if it is this file. O_NONBLOCK: it may have become a FIFO.
  bool open_same(const fs::path& name, const Layout& layout) {
    descriptor = open(name.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) return false;
    struct stat status {};
    std::string head(layout.head.size(), '\0');
    if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) &&
        status.st_size == layout.file_bytes &&
        read_at(head.data(), static_cast<std::int64_t>(head.size()), 0) && head == layout.head)
      return true;
    close(std::exchange(descriptor, -1));
    return false;
  }

  // Opens what a stopped run left if it is this file, finished or not. A finished file that is not
  // this one is somebody else's.
  bool reopen(const Layout& layout) {
    if (open_same(temporary, layout)) return true;
    if (access(path.c_str(), F_OK) != 0) return false;
    if (!open_same(path, layout))
      throw UserError(
          ExitCode::cannot_create,
          path.string() + ": was not written by this run; move it, or choose another output.path");
    if (std::rename(path.c_str(), temporary.c_str()) != 0) fail(path, "cannot rename", errno);
    return true;
  }
};

SafetensorsWriter::SafetensorsWriter(const fs::path& path, const std::vector<TensorInfo>& tensors,
                                     Role role, Leftover leftover)
    : state_(new State) {
  Layout layout = lay_out(tensors);
  State& s = *state_;
  s.path = path;
  s.temporary =
      leftover == Leftover::keep ? fs::path(path.string() + ".tmp") : temporary_beside(path);
  s.places = std::move(layout.places);
  s.role = role;
  if (role == Role::helper) {
    s.descriptor = open(s.temporary.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (s.descriptor < 0)
      fail(s.path,
           "cannot be opened (all ranks write to one folder; is it on a shared file system?)",
           errno);
    return;
  }
  if (leftover == Leftover::keep && s.reopen(layout)) {
    s.kept = true;
    return;
  }
  check_replaceable(path);
  check_replaceable(s.temporary);
  // What a stopped run left is replaced, not written through.
  if (unlink(s.temporary.c_str()) != 0 && errno != ENOENT)
    fail(s.path, "cannot be replaced", errno);
  s.descriptor = open_new(s.temporary);
  if (s.descriptor < 0) fail(s.path, "cannot be created", errno);
  // A disk that is too small shows now and not after hours of work; file systems that cannot
  // reserve space go on.
  const int reserved = fallocate(s.descriptor, 0, 0, layout.file_bytes) == 0 ? 0 : errno;
  if (reserved == ENOSPC || reserved == EDQUOT || reserved == EFBIG)
    fail(s.path, fmt::format("cannot reserve {} bytes", layout.file_bytes).c_str(), reserved);
  if (ftruncate(s.descriptor, layout.file_bytes) != 0)
    fail(s.path, "cannot be given its size", errno);
  s.write_at(layout.head.data(), static_cast<std::int64_t>(layout.head.size()), 0);
  s.kept = leftover == Leftover::keep;
}

SafetensorsWriter::~SafetensorsWriter() = default;
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&&) noexcept = default;

void SafetensorsWriter::write(const std::string& name, const void* data) {
  write(name, INT64_MAX, [data](std::int64_t begin, std::int64_t) {
    return static_cast<const char*>(data) + begin;
  });
}

void SafetensorsWriter::write(const std::string& name, std::int64_t piece_bytes,
                              const Pieces& next) {
  State& s = *state_;
  const auto claim = [&]() -> Place& {
    const std::lock_guard lock(s.mutex);
    if (s.descriptor < 0 || s.flushed)
      throw std::logic_error(s.path.string() + ": is finished; " + in_quotes(name) +
                             " comes too late");
    const auto found = s.places.find(name);
    if (found == s.places.end())
      throw std::logic_error(s.path.string() + ": has no tensor " + in_quotes(name));
    if (found->second.progress != Place::unwritten)
      throw std::logic_error(s.path.string() + ": " + in_quotes(name) + " is written twice");
    found->second.progress = Place::started;
    return found->second;
  };
  Place& place = claim();
  for (std::int64_t begin = 0; begin < place.bytes;) {
    const std::int64_t count = std::min(piece_bytes, place.bytes - begin);
    s.write_at(next(begin, count), count, place.offset + begin);
    begin += count;
  }
  const std::lock_guard lock(s.mutex);
  place.progress = Place::written;
}

std::int64_t SafetensorsWriter::written_bytes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->count_bytes();
}

void SafetensorsWriter::adopt(const std::string& name) {
  const std::lock_guard lock(state_->mutex);
  state_->places.at(name).progress = Place::written;
}

bool SafetensorsWriter::read(const std::string& name, void* to) const {
  const Place place = [&] {
    const std::lock_guard lock(state_->mutex);
    return state_->places.at(name);
  }();
  return state_->read_at(to, place.bytes, place.offset);
}

void SafetensorsWriter::sync() const {
  if (fsync(state_->descriptor) != 0) fail(state_->path, "cannot be written to disk", errno);
}

void SafetensorsWriter::flush() {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  s.flushed = true;
  if (s.descriptor >= 0 && fsync(s.descriptor) != 0)
    fail(s.path, "cannot be written to disk", errno);
}

void SafetensorsWriter::finish(std::int64_t bytes_of_helpers) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  if (s.role != Role::owner)
    throw std::logic_error(s.path.string() + ": only the owner finishes a file");
  if (s.descriptor < 0) throw std::logic_error(s.path.string() + ": is finished already");
  std::int64_t all_bytes = 0;
  for (const auto& [name, place] : s.places) {
    all_bytes += place.bytes;
    if (bytes_of_helpers == 0 && place.progress != Place::written)
      throw std::logic_error(s.path.string() + ": " + in_quotes(name) + " was not written");
  }
  if (s.count_bytes() + bytes_of_helpers != all_bytes)
    throw std::logic_error(fmt::format("{}: {} of {} bytes were written", s.path.string(),
                                       s.count_bytes() + bytes_of_helpers, all_bytes));
  // After a failed fsync the kernel may have dropped the data, so the file cannot be finished any
  // more.
  int error = fsync(s.descriptor) == 0 ? 0 : errno;
  if (close(std::exchange(s.descriptor, -1)) != 0 && error == 0) error = errno;
  if (error == 0 && std::rename(s.temporary.c_str(), s.path.c_str()) != 0) error = errno;
  if (error != 0) {
    if (!s.kept) unlink(s.temporary.c_str());
    fail(s.path, "cannot be finished", error);
  }
  sync_folder(s.path.parent_path());
}

}  // namespace qpipe
