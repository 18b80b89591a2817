// Files that are there whole or not at all, whenever the machine stops.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace qpipe {

// All throw UserError(io) with the path, or UserError(cannot_create) where the name is that of
// something other than a regular file.

// fsync of a folder: the names in it are on disk.
void sync_folder(const std::filesystem::path& folder);

// Writes text through a temporary file beside it, fsync, rename and fsync of the folder.
void write_text_file(const std::filesystem::path& path, const std::string& text);

struct TextFile {
  std::string name;
  std::string text;
};

// The same for several files of one folder, which get their names in this order: with one fsync of
// the folder, and so that the disk works on all of them at once.
void write_text_files(const std::filesystem::path& folder, const std::vector<TextFile>& files);

// The bytes of regular files of one folder in another, with the rights that the umask leaves and
// not the sources'. Names may begin with a folder, which is made. Throws UserError as InputFile,
// too.
void copy_files(const std::filesystem::path& from, const std::filesystem::path& to,
                const std::vector<std::string>& names);

}  // namespace qpipe
