#include "pipeline/journal/journal.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "pipeline/files/agree.h"
#include "pipeline/files/durable_file.h"
#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/user_output.h"
#include "pipeline/files/xxh3.h"
#include "pipeline/journal/run_files.h"
#include "pipeline/journal/run_identity.h"
#include "pipeline/journal/sealed.h"

namespace qpipe {

namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

// Whether it had to be made.
bool make_folder(const fs::path& folder, const char* what, const char* key) {
  std::error_code error;
  const bool made = fs::create_directories(folder, error);
  if (error)
    throw UserError(ExitCode::cannot_create,
                    fmt::format("{}: cannot create the {}: {}; choose another {}", folder.string(),
                                what, error.message(), key));
  return made;
}

// Of the folder's files with such names, in the order of the names.
template <class IsName>
std::vector<fs::path> files_of(const fs::path& folder, IsName&& is_name) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error))
    if (is_name(entry->path().filename().string())) paths.push_back(entry->path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

// Damaged ones are as good as absent.
std::vector<std::string> record_texts(const fs::path& folder) {
  std::vector<std::string> texts;
  for (const fs::path& path : files_of(folder, is_record_name)) try {
      const std::string text = read_text_file(path, most_json_bytes, InputFile::Links::refuse);
      static_cast<void>(parse_record(text));
      texts.push_back(text);
    } catch (const std::exception&) {  // its layer is done again
      spdlog::warn("{}: is damaged; its layer is done again", printable(path.string()));
    }
  return texts;
}

Json memories(const fs::path& folder) {
  Json all = Json::object();
  for (const fs::path& path : files_of(folder, is_memory_name))
    if (const Json value = read_sealed(path); value.is_object()) all.update(value);
  return all;
}

// What an unfinished run here may have left in the output folder; empty without one. A run that was
// complete, or whose run.json is gone, left nothing behind that is not in the manifest.
FileNames left_by_unfinished_run(const fs::path& folder, const Options& options) {
  if (!is_there(folder / run_file) || is_there(finished_mark(folder))) return {};
  const Json record = read_sealed(folder / output_file);
  if (!record.is_object() || record.value("output", Json()) != output_name(options)) return {};
  FileNames names;
  for (const std::string name : record.at("files")) {
    names.insert(name);
    if (name.ends_with(".safetensors")) names.insert(name + ".tmp");
  }
  return names;
}

OutputFolder output_folder(const Options& options, const FileNames& files) {
  return {options.output.path, files, left_by_unfinished_run(run_folder(options), options),
          options.output.overwrite};
}

std::string hash_of_manifest(const fs::path& output) {
  return xxh3_of(read_text_file(output / manifest_name, most_json_bytes, InputFile::Links::refuse));
}

// A run of this identity has finished this output, and was killed while it removed its run folder.
bool is_complete(const fs::path& mark, const Options& options, const Json& identity) try {
  const Json finished = read_sealed(mark);
  return options.run.resume != "never" && finished.is_object() &&
         finished.at("identity") == identity &&
         finished.at("manifest") == hash_of_manifest(options.output.path) &&
         manifest_holds(options.output.path);
} catch (const std::exception&) {
  return false;
}

// Somebody else's file of that name stays.
void remove_mark(const fs::path& mark) {
  if (read_sealed(mark).is_null()) return;
  std::error_code error;
  fs::remove(mark, error);
}

void refuse_other_run(const fs::path& folder, const Options& options, const Json& before,
                      const Json& now) {
  constexpr std::size_t most_shown = 5;
  const bool any_build = options.run.allow_other_build;
  std::vector<std::string> differences =
      any_build ? identity_differences(without_build(before), without_build(now))
                : identity_differences(before, now);
  if (differences.empty()) return;
  const bool build_alone = without_build(before) == without_build(now);
  const std::size_t more = differences.size() - std::min(differences.size(), most_shown);
  differences.resize(differences.size() - more);
  const std::string text =
      fmt::format("{}: holds an unfinished run that differs: {}{}", folder.string(),
                  fmt::join(differences, "; "), more > 0 ? fmt::format("; and {} more", more) : "");
  throw UserError(
      ExitCode::config,
      text + (build_alone ? "; go on with that build, set run.allow_other_build = true to go on "
                            "with this one, or set run.resume = \"never\" to start over"
                          : "; put these back to go on with it, choose another output.path, or set "
                            "run.resume = \"never\" to start over"));
}

[[noreturn]] void refuse_to_go_on(const fs::path& folder) {
  throw UserError(ExitCode::no_input, folder.string() +
                                          ": there is no unfinished run to go on with; leave "
                                          "--resume (run.resume) out");
}

// The identity of the unfinished run that goes on. Otherwise null, and both folders are ready for a
// new one.
Json go_on(const Options& options, const fs::path& folder, const Json& identity,
           const FileNames& output_files) {
  const Json before = read_sealed(folder / run_file);
  const bool damaged = before.is_null() && is_there(folder / run_file);
  if (options.run.resume != "never" && before.is_object()) {
    refuse_other_run(folder, options, before, identity);
    remove_temporaries(options.output.path);
    return before;
  }
  if (options.run.resume == "require" && damaged)
    throw UserError(ExitCode::data, (folder / run_file).string() +
                                        ": is damaged; set run.resume = \"never\" to start over");
  if (options.run.resume == "require") refuse_to_go_on(folder);
  if (damaged)
    spdlog::warn("{}: is damaged; the run starts over", printable((folder / run_file).string()));
  prepare_output_folder(output_folder(options, output_files));
  clear_run_folder(folder);
  remove_mark(finished_mark(folder));
  write_text_files(
      folder, {{output_file, sealed({{"output", output_name(options)}, {"files", output_files}})},
               {run_file, sealed(identity)}});
  return {};
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
  r.layer = integer_of<decltype(r.layer)>(json.at("layer")).value();
  r.part = integer_of<decltype(r.part)>(json.at("part")).value();
  r.parts = integer_of<decltype(r.parts)>(json.at("parts")).value();
  json.at("tensors").get_to(r.tensors);
  json.at("held").get_to(r.held);
  r.findings = json.at("findings");
  return r;
}

Journal::Journal(const Options& options, const Json& identity, const FileNames& output_files,
                 Comm& comm)
    : folder_(run_folder(options)), identity_(identity), output_(options.output.path) {
  Json found = Json::object();
  on_root(comm, [&] {
    const bool made_folder = make_folder(folder_, "run folder", "run.folder");
    bool made_output = false;
    try {
      // run.json proves whose folder it is.
      const auto name =
          is_there(folder_ / run_file) ? RunLock::Name::of_qpipe : RunLock::Name::of_anybody;
      lock_ = std::make_unique<RunLock>(folder_ / lock_file, name);
      check_writable(output_, "output.path");
      made_output = make_folder(output_, "output folder", "output.path");
      output_lock_ = std::make_unique<RunLock>(output_ / output_lock_name, RunLock::Name::of_qpipe);
      check_run_folder(folder_);
      found["complete"] = is_complete(finished_mark(folder_), options, identity);
      if (found["complete"]) return remove();
      const Json before = go_on(options, folder_, identity, output_files);
      found["resumed"] = !before.is_null();
      found["records"] = record_texts(folder_);
      found["memory"] = memories(folder_);
      if (found["resumed"] && !found["memory"].contains("builds"))
        found["memory"]["builds"] = Json::array({build_in(before)});
    } catch (...) {  // nothing is left of a run that may not begin
      output_lock_.reset();
      lock_.reset();
      std::error_code not_empty;
      if (made_output) fs::remove(output_, not_empty);
      if (made_folder) fs::remove(folder_, not_empty);
      throw;
    }
  });
  found = Json::parse(comm.broadcast(found.dump(), 0));
  complete_ = found.at("complete");
  if (complete_) return;
  resumed_ = found.at("resumed");
  for (const std::string text : found.at("records")) records_.push_back(parse_record(text));
  remembered_ = found.at("memory");

  const Json build = build_in(identity);
  builds_ = remembered("builds").is_array() ? remembered("builds") : Json::array();
  if (!builds_.empty() && builds_.back() == build) return;
  builds_.push_back(build);
  if (resumed_) remember("builds", builds_, comm);
}

void Journal::remember(const std::string& key, const Json& value, Comm& comm) {
  remembered_[key] = value;
  on_root(comm, [&] { write_text_file(folder_ / memory_name(key), sealed({{key, value}})); });
}

void Journal::remove() {
  const fs::path mark = finished_mark(folder_);
  try {
    if (!is_there(mark) || !read_sealed(mark).is_null())
      write_text_file(mark,
                      sealed({{"identity", identity_}, {"manifest", hash_of_manifest(output_)}}));
    output_lock_.reset();
    clear_run_folder(folder_);
  } catch (const UserError&) {  // the output is complete; what is left does no harm
  }
  output_lock_.reset();
  lock_.reset();
  std::error_code holds_other_files;
  fs::remove(folder_, holds_other_files);
  remove_mark(mark);
}

void check_folders(const Options& options, const FileNames& output_files) {
  const fs::path folder = run_folder(options);
  const fs::path output = options.output.path;
  std::error_code error;
  const fs::path inside =
      fs::weakly_canonical(folder, error).lexically_relative(fs::weakly_canonical(output, error));
  if (!inside.empty() && *inside.begin() != "..")
    throw UserError(ExitCode::config, folder.string() +
                                          ": run.folder lies in output.path, which is for the "
                                          "checkpoint alone; choose another run.folder");
  const bool goes_on = options.run.resume != "never" &&
                       (is_there(folder / run_file) || is_there(finished_mark(folder)));
  if (options.run.resume == "require" && !goes_on) refuse_to_go_on(folder);
  // Where a run works, or one was killed, the lock tells more than the files do.
  if (goes_on || is_there(output / output_lock_name))
    check_writable(output, "output.path");
  else
    check_output_folder(output_folder(options, output_files));
  check_writable(folder, "run.folder");
  check_run_folder(folder);
}

}  // namespace qpipe
