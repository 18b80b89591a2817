#include "pipeline/journal/run_identity.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <set>

#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/printable.h"
#include "pipeline/files/user_path.h"
#include "pipeline/files/xxh3.h"

namespace qpipe {

namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

const std::string build_prefix = "build ";

// Options that do not change the output folder. The device stands for parallel.backend, hashes of
// contents for paths.
bool is_free(const std::string& key) {
  constexpr std::array<const char*, 7> keys{
      "model.path",  "calibration.cache", "quantize.allow_fallback",
      "output.path", "output.overwrite",  "memory.gpu",
      "memory.host"};
  return key.starts_with("parallel.") || key.starts_with("run.") ||
         std::find(keys.begin(), keys.end(), key) != keys.end();
}

std::string header_hash(const Checkpoint& model) {
  Xxh3 hash;
  for (const std::string& name : model.names()) {
    const TensorInfo& info = model.info(name);
    const std::string line =
        fmt::format("{} {} {}\n", name, name_of(info.dtype), fmt::join(info.shape, " "));
    hash.add(line.data(), line.size());
  }
  return hash.hexadecimal();
}

std::string size_and_time(const fs::path& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0)
    throw UserError(ExitCode::no_input, path.string() + ": " + std::strerror(errno));
  return fmt::format("{} bytes, changed {}.{:09}", status.st_size, status.st_mtim.tv_sec,
                     status.st_mtim.tv_nsec);
}

}  // namespace

Json run_identity(const Options& options, const Checkpoint& model, const std::string& model_name,
                  const Tokens& calibration, const Tokens& evaluation, const std::string& device,
                  const Json& build) {
  Json identity = Json::object();
  const Json all_options = options_as_json(options);
  for (const auto& [section, values] : all_options.items())
    for (const auto& [key, value] : values.items())
      if (const std::string name = fmt::format("{}.{}", section, key); !is_free(name))
        identity[name] = value;
  // Another folder may hold what this run did not write.
  identity["output.path"] = output_name(options);
  for (const auto& [part, version] : build.items()) identity[build_prefix + part] = version;
  identity["device"] = device;
  identity["model name"] = model_name;
  identity["model config.json"] = xxh3_of(to_json_text(model.config()));
  identity["model tensors"] = header_hash(model);
  std::error_code error;
  for (fs::directory_iterator entry(model.folder(), error), end; !error && entry != end;
       entry.increment(error))
    if (entry->path().extension() == ".safetensors")
      identity[fmt::format("model {}", printable(entry->path().filename().string()))] =
          size_and_time(entry->path());
  identity["calibration tokens"] = calibration.hash;
  identity["evaluation tokens"] = evaluation.hash;
  return identity;
}

Json build_in(const Json& identity) {
  Json build = Json::object();
  for (const auto& [key, value] : identity.items())
    if (key.starts_with(build_prefix)) build[key.substr(build_prefix.size())] = value;
  return build;
}

Json without_build(Json identity) {
  const Json build = build_in(identity);
  for (const auto& [part, version] : build.items()) identity.erase(build_prefix + part);
  return identity;
}

std::string output_name(const Options& options) {
  constexpr std::size_t whole = 1 << 16;  // of a path, which may be anything but UTF-8
  const fs::path path = user_path(options.output.path, "output.path");
  std::error_code error;  // the current folder may be gone
  const fs::path absolute = fs::absolute(path, error);
  return printable((error ? path : absolute).string(), whole);
}

std::vector<std::string> identity_differences(const Json& before, const Json& now) {
  std::set<std::string> keys;
  for (const Json* identity : {&before, &now})
    for (const auto& [key, value] : identity->items()) keys.insert(key);
  const auto text = [](const Json& identity, const std::string& key) {
    constexpr std::size_t most = 120;
    return identity.contains(key) ? printable(identity.at(key).dump(), most) : "absent";
  };
  const auto value = [](const Json& identity, const std::string& key) {
    return identity.contains(key) ? identity.at(key) : Json();
  };
  std::vector<std::string> lines;
  for (const std::string& key : keys)
    if (value(before, key) != value(now, key))
      lines.push_back(fmt::format("{}: was {}, is {}", key, text(before, key), text(now, key)));
  return lines;
}

}  // namespace qpipe
