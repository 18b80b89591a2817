#include "pipeline/journal/run_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "pipeline/files/durable_file.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/user_path.h"
#include "pipeline/journal/journal.h"
#include "pipeline/journal/sealed.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view memory_prefix = "found-";
constexpr std::string_view activations_prefix = "activations-";  // BlockStore::File

// "layer-00007.2-of-4" with `ending` behind it.
bool is_layer_name(const std::string& name, std::string_view ending) {
  LayerRecord record;
  long long layer = 0;
  if (!name.ends_with(ending) ||
      std::sscanf(name.c_str(), "layer-%lld.%d-of-%d", &layer, &record.part, &record.parts) != 3)
    return false;
  record.layer = layer;
  return name == record.stem() + std::string(ending);
}

bool is_written_by_runs(const std::string& name) {
  return name == run_file || name == output_file || is_record_name(name) ||
         is_layer_name(name, ".safetensors") || is_memory_name(name) || is_temporary_name(name) ||
         (name.starts_with(activations_prefix) && name.size() == activations_prefix.size() + 6);
}

std::vector<fs::path> files_of_runs(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error))
    if (is_written_by_runs(entry->path().filename().string())) paths.push_back(entry->path());
  return paths;
}

void remove_file(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(fs::symlink_status(path, error))) return;
  fs::remove(path, error);
  if (error)
    throw UserError(ExitCode::io, fmt::format("{}: cannot remove: {}; check its rights",
                                              path.string(), error.message()));
}

}  // namespace

fs::path run_folder(const Options& options) {
  return options.run.folder.empty() ? beside(options.output.path, ".run") : options.run.folder;
}

fs::path finished_mark(const fs::path& folder) { return beside(folder.string(), ".finished"); }

bool is_record_name(const std::string& name) { return is_layer_name(name, ".json"); }

std::string memory_name(const std::string& key) {
  return std::string(memory_prefix) + key + ".json";
}

bool is_memory_name(const std::string& name) {
  constexpr std::string_view ending = ".json";
  if (!name.starts_with(memory_prefix) || !name.ends_with(ending)) return false;
  return std::all_of(name.begin() + memory_prefix.size(), name.end() - ending.size(),
                     [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; });
}

void check_run_folder(const fs::path& folder) {
  for (const fs::path& path : files_of_runs(folder)) {
    check_replaceable(path);
    if (path.extension() == ".json" &&
        !looks_sealed(read_text_file(path, most_json_bytes, InputFile::Links::refuse)))
      throw UserError(
          ExitCode::cannot_create,
          path.string() + ": was not written by qpipe; move it, or choose another run.folder");
  }
}

void clear_run_folder(const fs::path& folder) {
  remove_file(folder / run_file);
  sync_folder(folder);
  for (const fs::path& path : files_of_runs(folder)) remove_file(path);
}

}  // namespace qpipe
