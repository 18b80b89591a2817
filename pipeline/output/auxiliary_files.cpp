#include "pipeline/output/auxiliary_files.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "pipeline/files/durable_file.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/output/manifest.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

template <std::size_t n>
bool ends_with_one_of(const std::string& name, const std::array<std::string_view, n>& suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(),
                     [&](std::string_view suffix) { return name.ends_with(suffix); });
}

// The source's, of this and other frameworks, which a loader of the output must not find.
bool is_weight_file(const std::string& name) {
  constexpr std::array<std::string_view, 18> suffixes{
      ".safetensors", ".bin",  ".pt",        ".pth",    ".gguf",    ".h5",
      ".msgpack",     ".onnx", ".tmp",       ".ckpt",   ".npz",     ".index.json",
      ".ot",          ".nemo", ".onnx_data", ".tflite", ".mlmodel", ".pkl"};
  return ends_with_one_of(name, suffixes) || name.ends_with(".pdparams");
}

bool is_written_here(const std::string& name) {
  constexpr std::array<std::string_view, 6> names{"config.json",          "quantize_config.json",
                                                  "quant_config.json",    "README.md",
                                                  "quantize_report.json", manifest_name};
  return std::find(names.begin(), names.end(), name) != names.end();
}

// A regular file of the model: in its folder, or behind a link into a hub's cache, whose
// models--ORG--NAME/ has the files in blobs/ and the links to them in snapshots/REVISION/.
bool belongs_to_model(const fs::path& path, const fs::path& folder) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return false;
  const fs::path target = fs::canonical(path, error);
  if (error) return false;
  const fs::path model = fs::canonical(folder, error);
  const fs::path inside = target.lexically_relative(model);
  if (!inside.empty() && *inside.begin() != "..") return true;
  const fs::path blobs = target.parent_path();
  if (blobs.filename() == "blobs" && fs::is_directory(blobs.parent_path() / "snapshots", error))
    return true;
  spdlog::warn("{} is not copied: it is a link out of the model's folder",
               printable(path.string()));
  return false;
}

// Names go into JSON, and into other programs' lists.
bool has_plain_name(const fs::path& path) {
  const std::string name = path.filename().string();
  if (printable(name) == name) return true;
  spdlog::warn("{} is not copied: its name is not UTF-8 or has control characters",
               printable(path.string()));
  return false;
}

bool can_be_read(const fs::path& path) {
  try {
    const InputFile opened(path);
    return true;
  } catch (const UserError& error) {
    if (is_needed_by_loaders(path.filename().string())) throw;
    spdlog::warn("{}; the output does not need it and goes without", error.what());
    return false;
  }
}

// Empty where there is no folder of this name.
std::vector<std::string> sorted_names(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error)
    throw UserError(ExitCode::no_input, fmt::format("{}: cannot be listed: {}; check its rights",
                                                    folder.string(), error.message()));
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

bool is_needed_by_loaders(const std::string& name) {
  constexpr std::array<std::string_view, 15> names{"added_tokens.json",
                                                   "chat_template.json",
                                                   "generation_config.json",
                                                   "merges.txt",
                                                   "preprocessor_config.json",
                                                   "processor_config.json",
                                                   "quant_config.json",
                                                   "quantize_config.json",
                                                   "special_tokens_map.json",
                                                   "tokenizer.json",
                                                   "tokenizer_config.json",
                                                   "tekken.json",
                                                   "video_preprocessor_config.json",
                                                   "vocab.json",
                                                   "vocab.txt"};
  constexpr std::array<std::string_view, 4> suffixes{".jinja", ".model", ".py", ".tiktoken"};
  return std::find(names.begin(), names.end(), name) != names.end() ||
         ends_with_one_of(name, suffixes);
}

std::vector<std::string> auxiliary_files(const fs::path& model) {
  std::vector<std::string> files;
  for (const std::string& name : sorted_names(model))
    if (!name.starts_with(".") && !is_weight_file(name) && !is_written_here(name) &&
        belongs_to_model(model / name, model) && has_plain_name(model / name) &&
        can_be_read(model / name))
      files.push_back(name);
  std::error_code error;
  const fs::path templates = model / templates_folder;
  if (!fs::is_directory(fs::symlink_status(templates, error))) return files;
  for (const std::string& name : sorted_names(templates))
    if (fs::path(name).extension() == ".jinja" && belongs_to_model(templates / name, model) &&
        has_plain_name(templates / name) && can_be_read(templates / name))
      files.push_back(std::string(templates_folder) + "/" + name);
  return files;
}

void copy_auxiliary_files(const fs::path& from, const fs::path& to) {
  copy_files(from, to, auxiliary_files(from));
}

}  // namespace qpipe
