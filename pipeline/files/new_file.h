// A file in the making: under a name that nobody can foresee until it is whole.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace qpipe {

// ".qpipe-" with 16 random hexadecimal digits and ".tmp", in the folder of `path`.
std::filesystem::path temporary_beside(const std::filesystem::path& path);
bool is_temporary_name(const std::string& name);

// Opens a regular file that is not there yet, with the rights that the umask leaves; no link is
// followed. Returns -1 and sets errno where it is there or cannot be made.
int open_new(const std::filesystem::path& path, unsigned rights = 0666);

// Throws UserError(cannot_create) where something other than a regular file has the name (a folder,
// a FIFO, a device, a link), because a rename would replace it.
void check_replaceable(const std::filesystem::path& path);

// What of `folder` a run that was killed left under temporary names is removed. Faults are ignored.
void remove_temporaries(const std::filesystem::path& folder);

// All members throw UserError(io) with the path of the file. Without publish() nothing is left.
class NewFile {
 public:
  // owner_writes: the group may not write, whatever the umask says.
  enum class Rights { umask, owner_writes };

  explicit NewFile(std::filesystem::path path, Rights rights = Rights::umask);
  ~NewFile();
  NewFile(NewFile&&) noexcept;
  NewFile& operator=(NewFile&&) = delete;

  void write(const void* data, std::size_t bytes);
  // Its way to the disk begins.
  void start_sync();
  void sync();
  // It gets its name, in place of a regular file that had it. The folder is left to sync_folder.
  void publish();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;  // "" when it has its name
  int descriptor_ = -1;
};

}  // namespace qpipe
