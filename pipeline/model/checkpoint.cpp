#include "pipeline/model/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <set>
#include <stdexcept>
#include <string_view>
#include <system_error>

#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/suggest.h"
#include "pipeline/model/tied_embedding.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

constexpr const char* single_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";
constexpr const char* download_again = "download the checkpoint again";

// Tensor → shard file, as the index says.
using WeightMap = std::map<std::string, std::string>;

// As transformers has it, null says that nothing is quantized: nobody after this need know.
nlohmann::json without_null_quantization(nlohmann::json config) {
  const auto found = config.find("quantization_config");
  if (found != config.end() && found->is_null()) config.erase(found);
  return config;
}

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
         name.ends_with(".safetensors") && name != ".safetensors" &&
         printable(name, name.size()) == name;
}

UserError missing_shard(const fs::path& folder, const std::string& shard,
                        const std::string& tensor) {
  return {ExitCode::no_input,
          fmt::format("{}: shard {} is missing, which {} names for {}; download it again",
                      folder.string(), in_quotes(shard), index_name, in_quotes(tensor))};
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

// Those of its shards that are there.
std::vector<std::string> shards_of_index(const fs::path& folder,
                                         const std::vector<std::string>& files,
                                         const WeightMap& map) {
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : map)
    if (has_file(files, shard)) shards.insert(shard);
  if (shards.empty()) throw missing_shard(folder, map.begin()->second, map.begin()->first);
  if (has_file(files, single_name) && !shards.contains(single_name))
    throw UserError(
        ExitCode::data,
        fmt::format("{}: has both {} and {}, which does not name it; remove the one that is stale",
                    folder.string(), single_name, index_name));
  return {shards.begin(), shards.end()};
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
    if (name.ends_with(".safetensors") && !name.starts_with("adapter_model"))
      shards.push_back(name);
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

UserError absent_from(const fs::path& shard, const std::string& tensor) {
  return {ExitCode::data,
          fmt::format("{}: has no tensor {}, which {} says is there; {}", shard.string(),
                      in_quotes(tensor), index_name, download_again)};
}

// transformers (with peft) would load the adapter as well: the base model alone is another model.
void refuse_adapter(const fs::path& folder, const std::vector<std::string>& files) {
  if (!has_file(files, "adapter_config.json")) return;
  throw UserError(
      ExitCode::data,
      fmt::format("{0}: has an adapter (adapter_config.json), which is not applied here; merge it "
                  "(peft: model.merge_and_unload().save_pretrained(...)) and give the merged "
                  "model, or move adapter_config.json away for the base model alone",
                  folder.string()));
}

template <class Word>
void copy_words(const unsigned char* from, std::int64_t stride, std::int64_t count,
                unsigned char* to) {
  const auto step = static_cast<std::int64_t>(sizeof(Word)) * stride;
  for (std::int64_t i = 0; i < count; ++i, from += step, to += sizeof(Word))
    std::memcpy(to, from, sizeof(Word));
}

// Elements of `size` bytes that lie `stride` elements apart → side by side.
void copy_apart(const unsigned char* from, std::int64_t stride, std::int64_t size,
                std::int64_t count, unsigned char* to) {
  if (stride == 1)
    std::memcpy(to, from, static_cast<std::size_t>(count * size));
  else if (size == 1)
    copy_words<std::uint8_t>(from, stride, count, to);
  else if (size == 2)
    copy_words<std::uint16_t>(from, stride, count, to);
  else if (size == 4)
    copy_words<std::uint32_t>(from, stride, count, to);
  else
    copy_words<std::uint64_t>(from, stride, count, to);
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  const std::vector<std::string> files = list_folder(folder);
  if (files.empty())
    throw UserError(
        ExitCode::no_input,
        folder.string() + ": is empty; give the folder of a downloaded Hugging Face checkpoint");
  refuse_adapter(folder, files);
  if (!has_file(files, "config.json"))
    throw UserError(
        ExitCode::no_input,
        folder.string() +
            ": has no config.json; give the folder of a downloaded Hugging Face checkpoint");
  config_ = without_null_quantization(read_json_object(folder / "config.json"));

  WeightMap map;
  if (has_file(files, index_name)) map = read_index(folder / index_name);
  for (const std::string& name :
       map.empty() ? shards_without_index(folder, files) : shards_of_index(folder, files, map))
    shards_.emplace_back(folder / name);
  for (std::size_t i = 0; i < shards_.size(); ++i) add_tensors(i, map);
  for (const auto& [tensor, shard] : map)
    if (!contains(tensor))
      faults_.emplace(tensor, has_file(files, shard) ? absent_from(folder / shard, tensor)
                                                     : missing_shard(folder, shard, tensor));
  if (shard_of_.empty())
    throw UserError(ExitCode::data,
                    fmt::format("{}: holds no tensor; {}", folder.string(), download_again));
  present_experts();
  if (const auto embedding = embedding_stored_as_head(*this)) rename(*embedding);
}

void Checkpoint::present_experts() {
  ExpertSlices experts = slices_of_experts(config_, tensors_, folder_.string());
  for (TensorSlice& slice : experts.slices) {
    if (contains(slice.info.name)) continue;  // the file has it as it is
    if (const auto stack = tensors_.find(slice.stored); stack != tensors_.end()) {
      stacks_[slice.stored] = stack->second;
      tensors_.erase(stack);
    }
    tensors_[slice.info.name] = slice.info;
    shard_of_[slice.info.name] = shard_of_.at(slice.stored);
    slices_.emplace(slice.info.name, std::move(slice));
  }
  faults_.merge(std::move(experts.faults));
}

// Of two tensors of one name the index's counts, for those who do not need it.
void Checkpoint::add_tensors(std::size_t shard, const std::map<std::string, std::string>& map) {
  const std::string file = shards_[shard].path().filename().string();
  for (const auto& [tensor, info] : shards_[shard].tensors()) {
    const auto [other, is_new] = shard_of_.emplace(tensor, shard);
    const auto listed = map.find(tensor);
    if (!is_new) {
      faults_.emplace(
          tensor,
          UserError(ExitCode::data, fmt::format("{}: has tensor {}, which is in {} too; {}",
                                                shards_[shard].path().string(), in_quotes(tensor),
                                                shards_[other->second].path().filename().string(),
                                                download_again)));
      if (listed == map.end() || listed->second != file) continue;
      other->second = shard;
    }
    tensors_[tensor] = info;
  }
}

void Checkpoint::rename(const RenamedTensor& renamed) {
  auto node = tensors_.extract(renamed.stored);
  node.key() = node.mapped().name = renamed.name;
  tensors_.insert(std::move(node));
  shard_of_[renamed.name] = shard_of_.at(renamed.stored);
  shard_of_.erase(renamed.stored);
  stored_as_[renamed.name] = renamed.stored;
  faults_.erase(renamed.name);
}

const std::string& Checkpoint::stored_name(const std::string& name) const {
  const auto found = stored_as_.find(name);
  return found == stored_as_.end() ? name : found->second;
}

Checkpoint::Checkpoint(const fs::path& folder, nlohmann::json config,
                       const std::vector<TensorInfo>& tensors)
    : folder_(folder), config_(without_null_quantization(std::move(config))) {
  for (const TensorInfo& info : tensors) tensors_[info.name] = info;
}

std::optional<UserError> Checkpoint::fault_of(const std::string& name) const {
  const auto found = faults_.find(name);
  return found == faults_.end() ? std::nullopt : std::optional(found->second);
}

fs::path Checkpoint::place_of(const std::string& name) const {
  const auto found = shard_of_.find(name);
  return found == shard_of_.end() || made_.contains(name) ? folder_ : shards_[found->second].path();
}

const TensorInfo& Checkpoint::info(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  if (const auto stack = stacks_.find(name); stack != stacks_.end()) return stack->second;
  if (const auto fault = fault_of(name)) throw UserError(*fault);
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
  read(name, 0, info(name).bytes(), to);
}

void Checkpoint::read(const std::string& name, std::int64_t begin, std::int64_t count,
                      void* to) const {
  info(name);
  if (const auto made = made_.find(name); made != made_.end())
    return made->second(*this, begin, count, to);
  read_stored(name, begin, count, to);
}

void Checkpoint::present(const TensorInfo& made, const std::vector<std::string>& hidden,
                         ReadRange read) {
  std::vector<TensorInfo>& parts = parts_[made.name];
  for (const std::string& name : hidden) {
    parts.push_back(tensors_.at(name));
    tensors_.erase(name);
  }
  tensors_[made.name] = made;
  made_[made.name] = std::move(read);
}

std::vector<TensorInfo> Checkpoint::parts_of(const std::string& name) const {
  const auto parts = parts_.find(name);
  return parts == parts_.end() ? std::vector<TensorInfo>{} : parts->second;
}

void Checkpoint::forget_quantization(const std::string& format) {
  config_.erase("quantization_config");
  dequantized_from_ = format;
}

void Checkpoint::read_stored(const std::string& name, std::int64_t begin, std::int64_t count,
                             void* to) const {
  if (const auto slice = slices_.find(name); slice != slices_.end())
    return read_slice(slice->second, begin, count, static_cast<unsigned char*>(to));
  shards_[shard_of_.at(name)].read(stored_name(name), begin, count, to);
}

// What lies between the elements is read with them: it is a part of the rows, and few reads are
// faster than many.
void Checkpoint::read_slice(const TensorSlice& slice, std::int64_t begin, std::int64_t count,
                            unsigned char* to) const {
  constexpr std::int64_t most_span_bytes = std::int64_t{8} << 20;
  const SafetensorsFile& shard = shards_[shard_of_.at(slice.info.name)];
  const auto size = static_cast<std::int64_t>(size_of(slice.info.dtype));
  if (slice.contiguous()) return shard.read(slice.stored, slice.first * size + begin, count, to);
  if (begin % size != 0 || count % size != 0)
    throw std::logic_error("Checkpoint::read: a part of an element");
  const std::int64_t cols = slice.info.cols();
  const std::int64_t most_rows =
      std::max<std::int64_t>(1, most_span_bytes / (slice.row_stride * size));
  std::vector<unsigned char> span;
  std::int64_t at = begin / size;
  const std::int64_t end = at + count / size;
  while (at < end) {
    const std::int64_t first_row = at / cols;
    const std::int64_t rows = std::min(most_rows, (end - 1) / cols - first_row + 1);
    const std::int64_t elements =
        (rows - 1) * slice.row_stride + (cols - 1) * slice.column_stride + 1;
    span.resize(static_cast<std::size_t>(elements * size));
    shard.read(slice.stored, (slice.first + first_row * slice.row_stride) * size, elements * size,
               span.data());
    for (std::int64_t row = first_row; row < first_row + rows; ++row) {
      const std::int64_t column = at - row * cols;
      const std::int64_t elements_of_row = std::min(end, (row + 1) * cols) - at;
      const std::int64_t from = (row - first_row) * slice.row_stride + column * slice.column_stride;
      copy_apart(span.data() + from * size, slice.column_stride, size, elements_of_row, to);
      at += elements_of_row;
      to += elements_of_row * size;
    }
  }
}

bool Checkpoint::lies_transposed(const std::string& name) const {
  const auto slice = slices_.find(name);
  return slice != slices_.end() && slice->second.transposed;
}

std::vector<ExpertStack> Checkpoint::expert_stacks() const {
  std::map<std::string, ExpertStack> stacks;
  for (const auto& [name, info] : stacks_) stacks[name].stored = info;
  for (const auto& [name, slice] : slices_) {
    const auto stack = stacks.find(slice.stored);
    if (stack == stacks.end()) continue;
    if (contains(name) && !made_.contains(name))
      stack->second.linears.push_back(name);
    else
      stacks.erase(stack);
  }
  std::vector<ExpertStack> whole;
  whole.reserve(stacks.size());
  for (auto& [name, stack] : stacks) whole.push_back(std::move(stack));
  return whole;
}

std::int64_t Checkpoint::total_bytes() const {
  std::int64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += tensor.bytes();
  return total;
}

}  // namespace qpipe
