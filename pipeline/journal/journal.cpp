#include "pipeline/journal/journal.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "pipeline/files/agree.h"
#include "pipeline/files/durable_file.h"
#include "pipeline/files/error.h"
#include "pipeline/files/xxh3.h"
#include "pipeline/journal/run_identity.h"
#include "pipeline/output/output.h"

namespace qpipe {

namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

std::string hash_of(const std::string& text) {
  Xxh3 hash;
  hash.add(text.data(), text.size());
  return hash.hexadecimal();
}

// The value with its hash, and back.
std::string sealed(const Json& value) {
  return Json{{"xxh3", hash_of(value.dump())}, {"value", value}}.dump() + "\n";
}

Json unsealed(const std::string& text) {
  Json file = Json::parse(text);
  if (file.at("xxh3") != hash_of(file.at("value").dump())) throw std::runtime_error("another hash");
  return file.at("value");
}

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

constexpr const char* run_file = "run.json";
constexpr const char* memory_prefix = "found-";

// What a run left here that may be damaged is as good as absent.
std::vector<std::string> texts_of(const fs::path& folder, const std::string& prefix) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename().string().starts_with(prefix) && entry.path().extension() == ".json")
      paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> texts;
  for (const fs::path& path : paths) texts.push_back(read_text(path));
  return texts;
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    throw UserError(ExitCode::cannot_create, folder.string() + ": cannot create the run folder: " +
                                                 error.message() + "; set run.folder");
}

void remove_file(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) throw UserError(ExitCode::io, path.string() + ": cannot remove: " + error.message());
}

// What earlier runs wrote here, run.json first, so that nothing is believed if this is interrupted.
void clear(const fs::path& folder) {
  remove_file(folder / run_file);
  sync_folder(folder);
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("layer-") || name.starts_with(memory_prefix) || name.ends_with(".tmp"))
      remove_file(entry.path());
  }
}

[[noreturn]] void refuse(const fs::path& folder, const std::vector<std::string>& differences) {
  std::string text = folder.string() + ": holds an unfinished run that differs:";
  for (const std::string& line : differences) text += "\n  " + line;
  text +=
      "\nput these back to go on with it, choose another output.path, or set run.resume = "
      "\"never\" to start over";
  throw UserError(ExitCode::config, text);
}

// Whether the folder's run goes on. Otherwise both folders are ready for a new one.
bool go_on(const Options& options, const fs::path& folder, const Json& identity) {
  Json before;
  if (fs::exists(folder / run_file)) {
    try {
      before = unsealed(read_text(folder / run_file));
    } catch (const std::exception&) {
      if (options.run.resume == "require")
        throw UserError(ExitCode::data,
                        (folder / run_file).string() +
                            ": is damaged; set run.resume = \"never\" to start over");
    }
  }
  if (options.run.resume != "never" && !before.is_null()) {
    const std::vector<std::string> differences = identity_differences(before, identity);
    if (!differences.empty()) refuse(folder, differences);
    if (!fs::exists(options.output.path))
      prepare_output_folder(options.output.path, false);  // all is done again
    return true;
  }
  if (options.run.resume == "require")
    throw UserError(
        ExitCode::no_input,
        folder.string() +
            ": there is no unfinished run to go on with; leave --resume (run.resume) out");
  prepare_output_folder(options.output.path, options.output.overwrite || !before.is_null());
  clear(folder);
  write_text_file(folder / run_file, sealed(identity));
  return false;
}

}  // namespace

std::string LayerRecord::stem() const {
  return fmt::format("layer-{:05}.{}-of-{}", layer, part, parts);
}

std::string to_text(const LayerRecord& r) {
  return sealed({{"layer", r.layer},
                 {"part", r.part},
                 {"parts", r.parts},
                 {"tensors", r.tensors},
                 {"held", r.held},
                 {"findings", r.findings}});
}

LayerRecord parse_record(const std::string& text) {
  const Json json = unsealed(text);
  LayerRecord r;
  json.at("layer").get_to(r.layer);
  json.at("part").get_to(r.part);
  json.at("parts").get_to(r.parts);
  json.at("tensors").get_to(r.tensors);
  json.at("held").get_to(r.held);
  r.findings = json.at("findings");
  return r;
}

fs::path run_folder(const Options& options) {
  if (!options.run.folder.empty()) return options.run.folder;
  std::string output = options.output.path;
  while (output.size() > 1 && output.back() == '/') output.pop_back();
  return output + ".run";
}

Journal::Journal(const Options& options, const Json& identity, Comm& comm)
    : folder_(run_folder(options)) {
  Json found = Json::object();
  on_root(comm, [&] {
    make_folder(folder_);
    lock_ = std::make_unique<RunLock>(folder_ / "lock");
    found["resumed"] = go_on(options, folder_, identity);
    found["records"] = texts_of(folder_, "layer-");
    found["memory"] = texts_of(folder_, memory_prefix);
  });
  found = Json::parse(comm.broadcast(found.dump(), 0));
  resumed_ = found.at("resumed");
  for (const std::string text : found.at("records")) try {
      records_.push_back(parse_record(text));
    } catch (const std::exception&) {  // damaged: its layer is done again
    }
  for (const std::string text : found.at("memory")) try {
      remembered_.update(unsealed(text));
    } catch (const std::exception&) {
    }
}

void Journal::remember(const std::string& key, const Json& value, Comm& comm) {
  remembered_[key] = value;
  on_root(comm, [&] {
    write_text_file(folder_ / (memory_prefix + key + ".json"), sealed({{key, value}}));
  });
}

void Journal::remove() {
  try {
    clear(folder_);
  } catch (const UserError&) {  // the output is complete; what is left does no harm
  }
  lock_.reset();
  std::error_code holds_other_files;
  fs::remove(folder_, holds_other_files);
}

}  // namespace qpipe
