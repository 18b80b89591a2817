// qpipe_files.json in the output folder: what a run wrote there, so that a later one removes that
// and nothing else.
#pragma once

#include <filesystem>
#include <set>
#include <string>

namespace qpipe {

inline constexpr const char* manifest_name = "qpipe_files.json";

// Names in the output folder: "config.json", "additional_chat_templates/rag.jinja".
using FileNames = std::set<std::string>;

// Of the files as they are in the folder, for all that are there; the manifest itself is not among
// them. Depends on their contents alone. Throws UserError.
void write_manifest(const std::filesystem::path& folder, const FileNames& names);

// The files that the folder's manifest names and that are still as they were written, and the
// manifest; empty without one. What is damaged, changed, or not a regular file of this folder is
// left out.
FileNames files_of_manifest(const std::filesystem::path& folder);

// All that the folder's manifest names, changed or not; empty without one.
FileNames names_in_manifest(const std::filesystem::path& folder);

// Whether every file of the folder's manifest is there as it was written.
bool manifest_holds(const std::filesystem::path& folder);

}  // namespace qpipe
