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
#include "pipeline/files/xxh3.h"

namespace qpipe {

namespace fs = std::filesystem;
using Json = nlohmann::json;

namespace {

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

std::string hash_of(const std::string& text) {
  Xxh3 hash;
  hash.add(text.data(), text.size());
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
                  const Tokens& calibration, const Tokens& evaluation, const std::string& device) {
  Json identity = Json::object();
  const Json all_options = options_as_json(options);
  for (const auto& [section, values] : all_options.items())
    for (const auto& [key, value] : values.items())
      if (const std::string name = fmt::format("{}.{}", section, key); !is_free(name))
        identity[name] = value;
  // Another folder may hold what this run did not write.
  const fs::path output = fs::absolute(options.output.path).lexically_normal();
  identity["output.path"] = (output.has_filename() ? output : output.parent_path()).string();
  identity["qpipe version"] = QPIPE_VERSION;
  identity["device"] = device;
  identity["model name"] = model_name;
  identity["model config.json"] = hash_of(model.config().dump());
  identity["model tensors"] = header_hash(model);
  for (const auto& entry : fs::directory_iterator(model.folder()))
    if (entry.path().extension() == ".safetensors")
      identity[fmt::format("model {}", entry.path().filename().string())] =
          size_and_time(entry.path());
  identity["calibration tokens"] = calibration.hash;
  identity["evaluation tokens"] = evaluation.hash;
  return identity;
}

std::vector<std::string> identity_differences(const Json& before, const Json& now) {
  std::set<std::string> keys;
  for (const Json* identity : {&before, &now})
    for (const auto& [key, value] : identity->items()) keys.insert(key);
  const auto text = [](const Json& identity, const std::string& key) {
    return identity.contains(key) ? identity.at(key).dump() : "absent";
  };
  std::vector<std::string> lines;
  for (const std::string& key : keys)
    if (text(before, key) != text(now, key))
      lines.push_back(fmt::format("{}: was {}, is {}", key, text(before, key), text(now, key)));
  return lines;
}

}  // namespace qpipe
