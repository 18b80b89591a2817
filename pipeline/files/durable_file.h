// Files that are there whole or not at all, whenever the machine stops.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace qpipe {

// fsync of a folder: the names in it are on disk. Throws UserError(io) with the path, as does
// write_text_file.
void sync_folder(const std::filesystem::path& folder);

// Writes text through PATH.tmp, fsync, rename and fsync of the folder.
void write_text_file(const std::filesystem::path& path, const std::string& text);

struct TextFile {
  std::string name;
  std::string text;
};

// The same for several files of one folder, which get their names in this order: with one fsync of
// the folder, and so that the disk works on all of them at once.
void write_text_files(const std::filesystem::path& folder, const std::vector<TextFile>& files);

}  // namespace qpipe
