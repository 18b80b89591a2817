#include "pipeline/files/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/write_fault.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void fail(const fs::path& path, const char* what, int error) {
  throw UserError(ExitCode::io, path.string() + ": " + what + ": " + write_fault(error));
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail(folder, "cannot create", error.value());
}

// Its way to the disk begins.
NewFile copy_of(const fs::path& from, const fs::path& to) {
  const InputFile source(from);
  NewFile copy(to);
  std::vector<char> piece(
      static_cast<std::size_t>(std::min<std::int64_t>(source.bytes(), 1 << 20)));
  for (std::int64_t at = 0; at < source.bytes();) {
    const std::int64_t count =
        std::min(source.bytes() - at, static_cast<std::int64_t>(piece.size()));
    source.read(piece.data(), count, at, "contents");
    copy.write(piece.data(), static_cast<std::size_t>(count));
    at += count;
  }
  copy.start_sync();
  return copy;
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

void write_text_files(const fs::path& folder, const std::vector<TextFile>& files) {
  std::vector<NewFile> written;
  for (const TextFile& file : files) {
    NewFile& one = written.emplace_back(folder / file.name);
    one.write(file.text.data(), file.text.size());
    one.start_sync();
  }
  for (NewFile& file : written) file.sync();
  for (NewFile& file : written) file.publish();
  if (!files.empty()) sync_folder(folder);
}

void write_text_file(const fs::path& path, const std::string& text) {
  write_text_files(path.parent_path(), {{path.filename().string(), text}});
}

void copy_files(const fs::path& from, const fs::path& to, const std::vector<std::string>& names) {
  std::vector<NewFile> copies;
  std::set<fs::path> folders;
  for (const std::string& name : names) {
    const fs::path folder = (to / name).parent_path();
    if (folders.insert(folder).second) make_folder(folder);
    copies.push_back(copy_of(from / name, to / name));
  }
  for (NewFile& copy : copies) copy.sync();
  for (NewFile& copy : copies) copy.publish();
  for (const fs::path& folder : folders) sync_folder(folder);
}

}  // namespace qpipe
