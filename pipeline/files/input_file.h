// A regular file opened for reading by position.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace qpipe {

// Opens without waiting. Throws UserError for what is missing, not readable, not a regular file
// (FIFO, device, folder; a link, where none is followed) or a Git LFS pointer.
class InputFile {
 public:
  enum class Links { follow, refuse };  // of the last name in the path

  explicit InputFile(const std::filesystem::path& path, Links links = Links::follow);
  ~InputFile();
  InputFile(InputFile&&) noexcept;
  InputFile& operator=(InputFile&&) noexcept;

  const std::filesystem::path& path() const { return path_; }
  std::int64_t bytes() const { return bytes_; }
  int descriptor() const { return descriptor_; }
  // Fills to[0, count) from the file's [offset, offset + count); `part` names it in messages.
  // Throws UserError when the file ends before. Thread-safe.
  void read(void* to, std::int64_t count, std::int64_t offset, const std::string& part) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t bytes_ = 0;
};

// The whole file. Throws UserError, also where it has more than most_bytes.
std::string read_text_file(const std::filesystem::path& path, std::int64_t most_bytes,
                           InputFile::Links links = InputFile::Links::follow);

}  // namespace qpipe
