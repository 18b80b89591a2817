#include "pipeline/model/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>

#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/suggest.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

constexpr const char* single_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";
constexpr const char* download_again = "download the checkpoint again";

// Tensor → shard file, as the index says.
using WeightMap = std::map<std::string, std::string>;

// The sorted names in the folder.
std::vector<std::string> list_folder(const fs::path& folder) {
  std::vector<std::string> names;
  try {
    for (const auto& entry : fs::directory_iterator(folder))
      names.push_back(entry.path().filename().string());
  } catch (const fs::filesystem_error& error) {
    const bool missing = error.code() == std::errc::no_such_file_or_directory;
    throw UserError(
        ExitCode::no_input,
        fmt::format("{}: cannot be listed: {}; give the folder of a downloaded checkpoint{}",
                    folder.string(), error.code().message(),
                    missing ? " (Hub names are not downloaded)" : ""));
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool has_file(const std::vector<std::string>& names, const std::string& name) {
  return std::binary_search(names.begin(), names.end(), name);
}

bool is_plain_file_name(const std::string& name) {
  return name.find_first_of(std::string("/\\\0", 3)) == std::string::npos &&
         name.ends_with(".safetensors") && name != ".safetensors";
}

WeightMap read_index(const fs::path& path) {
  const nlohmann::json index = read_json_object(path);
  const auto refuse = [&](const std::string& fault) {
    throw UserError(ExitCode::data,
                    fmt::format("{}: {}; {}", path.string(), fault, download_again));
  };
  if (!index.contains("weight_map") || !index["weight_map"].is_object())
    refuse("has no object weight_map");
  WeightMap map;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string())
      refuse(fmt::format("weight_map: the shard of {} is not a string", in_quotes(tensor)));
    const auto& name = shard.get_ref<const std::string&>();
    if (!is_plain_file_name(name))
      refuse(fmt::format(
          "weight_map: the shard {} of {} is not the name of a .safetensors file in this folder",
          in_quotes(name), in_quotes(tensor)));
    map[tensor] = name;
  }
  if (map.empty()) refuse("weight_map names no tensor");
  return map;
}

std::vector<std::string> shards_of_index(const fs::path& folder,
                                         const std::vector<std::string>& files,
                                         const WeightMap& map) {
  std::map<std::string, std::string> shards;  // → a tensor in it
  for (const auto& [tensor, shard] : map) shards.emplace(shard, tensor);
  std::vector<std::string> names;
  for (const auto& [shard, tensor] : shards) {
    if (!has_file(files, shard))
      throw UserError(
          ExitCode::no_input,
          fmt::format("{}: shard {} is missing, which {} names for {}; download it again",
                      folder.string(), in_quotes(shard), index_name, in_quotes(tensor)));
    names.push_back(shard);
  }
  if (has_file(files, single_name) && shards.count(single_name) == 0)
    throw UserError(
        ExitCode::data,
        fmt::format("{}: has both {} and {}, which does not name it; remove the one that is stale",
                    folder.string(), single_name, index_name));
  return names;
}

// STEM-00001-of-0000N.safetensors.
struct ShardSetName {
  std::string stem;
  int count = 0;  // N
};

std::optional<ShardSetName> shard_set_of(const std::string& name) {
  const std::size_t tail = std::string_view("-00001-of-0000N.safetensors").size();
  if (name.size() <= tail) return std::nullopt;
  ShardSetName set{name.substr(0, name.size() - tail), 0};
  const char* digits = name.data() + name.size() - std::string_view("0000N.safetensors").size();
  const auto [end, error] = std::from_chars(digits, digits + 5, set.count);
  if (error != std::errc() || end != digits + 5 || set.count < 1 || name[name.size() - tail] != '-')
    return std::nullopt;
  return set;
}

// Without an index: model.safetensors, or NAME-00001-of-0000N.safetensors to
// NAME-0000N-of-0000N.safetensors and no other.
std::vector<std::string> shards_without_index(const fs::path& folder,
                                              const std::vector<std::string>& files) {
  if (has_file(files, single_name)) return {single_name};
  std::vector<std::string> shards;
  bool has_torch = false;
  for (const std::string& name : files) {
    if (name.ends_with(".safetensors")) shards.push_back(name);
    has_torch = has_torch || (name.starts_with("pytorch_model") && name.ends_with(".bin"));
  }
  const auto refuse = [&](const std::string& fault) {
    throw UserError(ExitCode::no_input, folder.string() + ": " + fault);
  };
  if (shards.empty() && has_torch)
    refuse(fmt::format(
        "has PyTorch weights (pytorch_model*.bin) only; convert them to safetensors: python3 -c "
        "\"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{0}', "
        "dtype='auto').save_pretrained('{0}')\"",
        folder.string()));
  if (shards.empty()) refuse(fmt::format("has no .safetensors files; {}", download_again));

  const std::optional<ShardSetName> set = shard_set_of(shards.front());
  if (!set)
    refuse(fmt::format("has {} file(s) .safetensors ({}, ...) but neither {} nor {}; {}",
                       shards.size(), in_quotes(shards.front()), single_name, index_name,
                       download_again));
  for (int i = 1; i <= set->count; ++i) {
    const std::string expected =
        fmt::format("{}-{:05}-of-{:05}.safetensors", set->stem, i, set->count);
    if (!has_file(shards, expected))
      refuse(fmt::format("has shards but no {}, and shard {} is missing; download what is missing",
                         index_name, in_quotes(expected)));
  }
  if (shards.size() != static_cast<std::size_t>(set->count))
    refuse(fmt::format(
        "has {} .safetensors files but no {} that says whether they belong to the set {}; {}",
        shards.size(), index_name, in_quotes(shards.front()), download_again));
  return shards;
}

// Every tensor of the index is in the shard that it names, and no other tensor is in the shards.
void check_index(const fs::path& folder, const WeightMap& map,
                 const std::vector<SafetensorsFile>& shards) {
  std::map<std::string, const SafetensorsFile*> by_name;
  for (const SafetensorsFile& shard : shards) by_name[shard.path().filename().string()] = &shard;
  for (const auto& [tensor, shard] : map)
    if (!by_name.at(shard)->contains(tensor))
      throw UserError(
          ExitCode::data,
          fmt::format("{}: has no tensor {}, which {} says is there; {}", (folder / shard).string(),
                      in_quotes(tensor), index_name, download_again));
  for (const auto& [shard, file] : by_name)
    for (const auto& [tensor, info] : file->tensors()) {
      const auto found = map.find(tensor);
      if (found == map.end())
        throw UserError(
            ExitCode::data,
            fmt::format(
                "{}: has a tensor {} that {} does not name: the shard or the index is stale; {}",
                (folder / shard).string(), in_quotes(tensor), index_name, download_again));
      if (found->second != shard)
        throw UserError(ExitCode::data, fmt::format("{}: has tensor {}, which is in {} too; {}",
                                                    (folder / shard).string(), in_quotes(tensor),
                                                    found->second, download_again));
    }
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  const std::vector<std::string> files = list_folder(folder);
  if (files.empty())
    throw UserError(
        ExitCode::no_input,
        folder.string() + ": is empty; give the folder of a downloaded Hugging Face checkpoint");
  if (!has_file(files, "config.json"))
    throw UserError(
        ExitCode::no_input,
        folder.string() +
            ": has no config.json; give the folder of a downloaded Hugging Face checkpoint");
  config_ = read_json_object(folder / "config.json");

  std::optional<WeightMap> map;
  if (has_file(files, index_name)) map = read_index(folder / index_name);
  for (const std::string& name :
       map ? shards_of_index(folder, files, *map) : shards_without_index(folder, files))
    shards_.emplace_back(folder / name);
  if (map) check_index(folder, *map, shards_);

  for (std::size_t i = 0; i < shards_.size(); ++i)
    for (const auto& [tensor, info] : shards_[i].tensors()) {
      const auto [other, is_new] = shard_of_.emplace(tensor, i);
      if (!is_new)
        throw UserError(
            ExitCode::data,
            fmt::format("{}: has tensor {}, which is in {} too; {}", shards_[i].path().string(),
                        in_quotes(tensor), shards_[other->second].path().filename().string(),
                        download_again));
      tensors_[tensor] = info;
    }
  if (shard_of_.empty())
    throw UserError(ExitCode::data,
                    fmt::format("{}: holds no tensor; {}", folder.string(), download_again));
}

Checkpoint::Checkpoint(const fs::path& folder, nlohmann::json config,
                       const std::vector<TensorInfo>& tensors)
    : folder_(folder), config_(std::move(config)) {
  for (const TensorInfo& info : tensors) tensors_[info.name] = info;
}

const TensorInfo& Checkpoint::info(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  const std::string near = nearest_name(name, names());
  throw UserError(ExitCode::data,
                  fmt::format("{}: has no tensor {}; {}", folder_.string(), in_quotes(name),
                              near.empty() ? "check that it is the right checkpoint"
                                           : "the nearest name is " + in_quotes(near)));
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, info] : tensors_) names.push_back(name);
  return names;
}

std::vector<std::string> Checkpoint::names_of(const std::string& module) const {
  const std::string prefix = module + ".";
  std::vector<std::string> names;
  for (auto tensor = tensors_.lower_bound(prefix);
       tensor != tensors_.end() && tensor->first.starts_with(prefix); ++tensor)
    names.push_back(tensor->first);
  return names;
}

void Checkpoint::read(const std::string& name, void* to) const {
  info(name);
  shards_[shard_of_.at(name)].read(name, to);
}

void Checkpoint::read(const std::string& name, std::int64_t begin, std::int64_t count,
                      void* to) const {
  info(name);
  shards_[shard_of_.at(name)].read(name, begin, count, to);
}

std::int64_t Checkpoint::total_bytes() const {
  std::int64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += tensor.bytes();
  return total;
}

}  // namespace qpipe
