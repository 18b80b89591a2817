// A regular file opened for reading by position.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace qpipe {

// Opens without waiting. Throws UserError for what is missing, not readable, not a regular file
// (FIFO, device, folder) or a Git LFS pointer.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(InputFile&&) noexcept;
  InputFile& operator=(InputFile&&) noexcept;

  const std::filesystem::path& path() const { return path_; }
  std::int64_t bytes() const { return bytes_; }
  // Fills to[0, count) from the file's [offset, offset + count); `part` names it in messages.
  // Throws UserError when the file ends before. Thread-safe.
  void read(void* to, std::int64_t count, std::int64_t offset, const std::string& part) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t bytes_ = 0;
};

}  // namespace qpipe
