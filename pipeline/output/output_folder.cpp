#include "pipeline/output/output_folder.h"

#include <fmt/format.h>

#include <vector>

#include "pipeline/files/error.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/user_output.h"
#include "pipeline/output/auxiliary_files.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void refuse(const fs::path& path, const std::string& fault) {
  throw UserError(ExitCode::cannot_create, path.string() + ": " + fault);
}

// Whose absence or presence decides what loaders load: all safetensors, indexes and adapters beside
// what they read from the model's folder.
bool is_read_by_loaders(const std::string& name) {
  return name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") ||
         name.starts_with("adapter_") || name == "config.json" || name == "params.json" ||
         name == "hf_quant_config.json" || is_needed_by_loaders(name);
}

// Names of the folder's entries, those of chat templates as "additional_chat_templates/NAME"; a
// lock and temporary files, which come and go, are left out.
std::vector<std::string> entries_of(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  const auto list = [&](const fs::path& inside, const std::string& prefix) {
    for (fs::directory_iterator entry(inside, error), end; !error && entry != end;
         entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      if (name == output_lock_name || is_temporary_name(name) ||
          (name == templates_folder && fs::is_directory(entry->symlink_status(error))))
        continue;
      names.push_back(prefix + name);
    }
    if (error) refuse(inside, "cannot be listed: " + error.message() + "; check its rights");
  };
  list(folder, "");
  if (fs::is_directory(fs::symlink_status(folder / templates_folder, error)))
    list(folder / templates_folder, std::string(templates_folder) + "/");
  return names;
}

struct Contents {
  std::vector<std::string> ours;
  std::vector<std::string> others;
};

// A name of an unfinished run counts while a regular file has it.
Contents contents_of(const OutputFolder& output) {
  Contents contents;
  const FileNames finished = files_of_manifest(output.path);
  for (const std::string& name : entries_of(output.path)) {
    std::error_code error;
    const bool ours = (finished.contains(name) || output.unfinished.contains(name)) &&
                      fs::is_regular_file(fs::symlink_status(output.path / name, error));
    (ours ? contents.ours : contents.others).push_back(name);
  }
  return contents;
}

bool is_in_the_way(const OutputFolder& output, const std::string& name) {
  const std::string final_name = name.ends_with(".tmp") ? name.substr(0, name.size() - 4) : name;
  return name == manifest_name || name == templates_folder || output.written.contains(name) ||
         output.written.contains(final_name);
}

}  // namespace

void check_output_folder(const OutputFolder& output) {
  check_writable(output.path, "output.path");
  std::error_code error;
  if (!fs::exists(output.path, error)) return;
  const Contents contents = contents_of(output);
  const bool empty = contents.ours.empty() && contents.others.empty();
  // An unfinished run had this folder already.
  if (!empty && !output.overwrite && output.unfinished.empty())
    refuse(output.path, "is not empty; choose another output.path or set output.overwrite = true");
  for (const std::string& name : contents.others) {
    if (is_in_the_way(output, name))
      refuse(output.path / name,
             "was not written by qpipe, or was changed since, and would be replaced; move it, or "
             "choose another output.path");
    if (is_read_by_loaders(name))
      refuse(output.path / name,
             "was not written by qpipe, or was changed since, and loaders would take it for a part "
             "of the checkpoint; move it, or choose another output.path");
  }
}

void prepare_output_folder(const OutputFolder& output) {
  check_output_folder(output);
  std::error_code error;
  fs::create_directories(output.path, error);
  if (error)
    refuse(output.path,
           "cannot create the output folder: " + error.message() + "; choose another output.path");
  const auto remove = [&](const std::string& name) {
    fs::remove(output.path / name, error);
    if (error)
      throw UserError(ExitCode::io, fmt::format("{}: cannot remove: {}; check its rights",
                                                (output.path / name).string(), error.message()));
  };
  // The manifest goes last: it proves what is left when this is interrupted.
  bool manifest = false;
  for (const std::string& name : contents_of(output).ours)
    if (name == manifest_name)
      manifest = true;
    else
      remove(name);
  if (manifest) remove(manifest_name);
  remove_temporaries(output.path);
  fs::remove(output.path / templates_folder, error);  // if it is empty now
}

}  // namespace qpipe
