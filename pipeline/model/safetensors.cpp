#include "pipeline/model/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "pipeline/files/error.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/suggest.h"

namespace qpipe {

using nlohmann::json;

namespace {

constexpr std::int64_t length_bytes = 8;  // the header's length, little-endian, opens the file

constexpr std::size_t most_dimensions = 64;  // as in PyTorch and NumPy

constexpr std::array dtypes = {
    DType::f64,     DType::f32, DType::f16, DType::bf16,    DType::i64,     DType::i32,
    DType::i16,     DType::i8,  DType::u8,  DType::boolean, DType::f8_e4m3, DType::f8_e5m2,
    DType::f8_e8m0, DType::u16, DType::u32, DType::u64,     DType::c64};

// Π shape · size_of(dtype), or nothing when it overflows or a size is negative.
std::optional<std::int64_t> bytes_of(const std::vector<std::int64_t>& shape, DType dtype) {
  auto bytes = static_cast<std::int64_t>(size_of(dtype));
  for (const std::int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  return bytes;
}

// One tensor's place in the data, which starts after the header.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

struct Entry {
  TensorInfo info;
  Range range;
};

struct Header {
  std::map<std::string, Entry> entries;
  std::map<std::string, std::string> metadata;
};

constexpr const char* download_again = "copy or download the file again";

[[noreturn]] void refuse(const std::string& where, const std::string& fault) {
  throw UserError(ExitCode::data, fmt::format("{}: {}; {}", where, fault, download_again));
}

std::int64_t nonnegative(const json& value, const std::string& where, const char* what) {
  if (!value.is_number_unsigned() ||
      value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max())
    refuse(where, fmt::format("{} {} is not an integer from 0 to 2^63-1", what,
                              value.is_number() ? value.dump() : value.type_name()));
  return value.get<std::int64_t>();
}

DType dtype_named(const json& value, const std::string& where) {
  if (!value.is_string()) refuse(where, "dtype is not a string");
  const auto& name = value.get_ref<const std::string&>();
  std::string supported;
  for (const DType dtype : dtypes) {
    if (name == name_of(dtype)) return dtype;
    supported += fmt::format("{}{}", supported.empty() ? "" : ", ", name_of(dtype));
  }
  throw UserError(ExitCode::data,
                  fmt::format("{}: dtype {} is not supported; convert it to one of {}", where,
                              in_quotes(name), supported));
}

Entry parse_entry(const std::string& name, const json& value, const std::string& where) {
  if (!value.is_object()) refuse(where, "is not an object with dtype, shape and data_offsets");
  for (const char* key : {"dtype", "shape", "data_offsets"})
    if (!value.contains(key)) refuse(where, fmt::format("has no {}", key));
  if (value.size() != 3) refuse(where, "has keys other than dtype, shape and data_offsets");

  Entry entry;
  entry.info.name = name;
  entry.info.dtype = dtype_named(value["dtype"], where);
  if (!value["shape"].is_array()) refuse(where, "shape is not an array");
  if (value["shape"].size() > most_dimensions)
    refuse(where,
           fmt::format("has {} dimensions, more than {}", value["shape"].size(), most_dimensions));
  for (const json& size : value["shape"])
    entry.info.shape.push_back(nonnegative(size, where, "shape:"));

  const json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2)
    refuse(where, "data_offsets is not an array of two numbers");
  entry.range = {nonnegative(offsets[0], where, "data_offsets:"),
                 nonnegative(offsets[1], where, "data_offsets:")};
  const auto [begin, end] = entry.range;
  if (begin > end)
    refuse(where, fmt::format("data_offsets [{}, {}] begin after their end", begin, end));

  const std::optional<std::int64_t> bytes = bytes_of(entry.info.shape, entry.info.dtype);
  if (!bytes)
    refuse(where, fmt::format("the size of shape {} overflows 64 bits", entry.info.shape));
  if (*bytes != end - begin)
    refuse(where, fmt::format("shape {} of {} takes {} bytes, but data_offsets hold {}",
                              entry.info.shape, name_of(entry.info.dtype), *bytes, end - begin));
  return entry;
}

std::map<std::string, std::string> parse_metadata(const json& value, const std::string& where) {
  if (!value.is_object()) refuse(where, "is not an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string())
      refuse(where, fmt::format("the value of {} is not a string", in_quotes(key)));
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

Header parse_header(std::string_view text, const std::string& path) {
  const json value = parse_json(text, path + ": the header", download_again);
  Header header;
  for (const auto& [name, item] : value.items()) {
    const std::string where = fmt::format("{}: {}", path, in_quotes(name));
    if (printable(name, name.size()) != name)
      refuse(where, "the tensor's name has characters that cannot be shown");
    if (name == "__metadata__")
      header.metadata = parse_metadata(item, where);
    else
      header.entries.emplace(name, parse_entry(name, item, where));
  }
  return header;
}

// The tensors cover [0, data_bytes) without overlap or hole.
void check_cover(const Header& header, std::int64_t data_bytes, const std::string& path) {
  std::vector<const Entry*> order;
  for (const auto& [name, entry] : header.entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) {
    return a->range.begin != b->range.begin ? a->range.begin < b->range.begin
                                            : a->range.end < b->range.end;
  });
  const Entry* before = nullptr;
  std::int64_t end = 0;
  for (const Entry* entry : order) {
    const std::string where = fmt::format("{}: {}", path, in_quotes(entry->info.name));
    if (entry->range.begin < end)
      refuse(where, fmt::format("overlaps {}", in_quotes(before->info.name)));
    if (entry->range.begin > end)
      refuse(where,
             fmt::format("begins at byte {} of the data, which leaves a hole of {} bytes before it",
                         entry->range.begin, entry->range.begin - end));
    if (entry->range.end > data_bytes)
      refuse(
          where,
          fmt::format("the file is truncated: the tensor ends at byte {} of the data, which has {}",
                      entry->range.end, data_bytes));
    before = entry;
    end = entry->range.end;
  }
  if (end < data_bytes)
    refuse(path, fmt::format("{} bytes follow the last tensor", data_bytes - end));
}

std::int64_t read_header_bytes(const InputFile& file) {
  const std::string path = file.path().string();
  if (file.bytes() < length_bytes)
    refuse(path, fmt::format("has {} bytes, too few for a safetensors file: it is truncated",
                             file.bytes()));
  std::array<unsigned char, length_bytes> bytes{};
  file.read(bytes.data(), length_bytes, 0, "header length");
  std::uint64_t length = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) length = length << 8 | bytes[i];
  if (length > static_cast<std::uint64_t>(most_json_bytes))
    refuse(path, fmt::format("the header's length of {} bytes is over the format's limit of {}: it "
                             "is not a safetensors file or damaged",
                             length, most_json_bytes));
  const auto header_bytes = static_cast<std::int64_t>(length);
  if (header_bytes > file.bytes() - length_bytes)
    refuse(path, fmt::format("the file is truncated: its header has {} bytes, the file {}",
                             header_bytes, file.bytes()));
  return header_bytes;
}

}  // namespace

std::int64_t TensorInfo::bytes() const {
  const std::optional<std::int64_t> result = bytes_of(shape, dtype);
  if (!result)
    throw UserError(ExitCode::data,
                    fmt::format("{}: shape {} is impossible: a size is negative, or their product "
                                "overflows 64 bits; check the sizes in config.json",
                                in_quotes(name), shape));
  return *result;
}

std::int64_t TensorInfo::rows() const {
  if (shape.size() == 1) return 1;
  if (shape.size() == 2 || (shape.size() == 3 && shape[1] == 1)) return shape[0];
  throw UserError(ExitCode::data, fmt::format("{}: has shape {}; expected a matrix or a vector",
                                              in_quotes(name), shape));
}

std::int64_t TensorInfo::cols() const {
  rows();
  return shape.back();
}

struct SafetensorsFile::State {
  InputFile file;
  std::int64_t data_begin = 0;
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::int64_t> begins;
  std::map<std::string, std::string> metadata;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : state_(new State{InputFile(path), 0, {}, {}, {}}) {
  const InputFile& file = state_->file;
  std::string text(static_cast<std::size_t>(read_header_bytes(file)), '\0');
  file.read(text.data(), static_cast<std::int64_t>(text.size()), length_bytes, "header");
  if (!text.starts_with('{'))
    refuse(path.string(),
           "the header does not start with '{': it is not a safetensors file or damaged");
  state_->data_begin = length_bytes + static_cast<std::int64_t>(text.size());

  Header header = parse_header(text, path.string());
  check_cover(header, file.bytes() - state_->data_begin, path.string());
  state_->metadata = std::move(header.metadata);
  for (auto& [name, entry] : header.entries) {
    state_->begins[name] = entry.range.begin;
    state_->tensors[name] = std::move(entry.info);
  }
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const std::filesystem::path& SafetensorsFile::path() const { return state_->file.path(); }
const std::map<std::string, TensorInfo>& SafetensorsFile::tensors() const {
  return state_->tensors;
}
const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return state_->metadata;
}

const TensorInfo& SafetensorsFile::info(const std::string& name) const {
  const auto found = state_->tensors.find(name);
  if (found != state_->tensors.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [other, tensor] : state_->tensors) names.push_back(other);
  const std::string near = nearest_name(name, names);
  throw UserError(ExitCode::data,
                  fmt::format("{}: has no tensor {}; {}", path().string(), in_quotes(name),
                              near.empty() ? "check that it is the right file"
                                           : "the nearest name is " + in_quotes(near)));
}

void SafetensorsFile::read(const std::string& name, void* to) const {
  read(name, 0, info(name).bytes(), to);
}

void SafetensorsFile::read(const std::string& name, std::int64_t begin, std::int64_t count,
                           void* to) const {
  if (begin < 0 || count < 0 || begin > info(name).bytes() - count)
    throw std::out_of_range(fmt::format("{}: {} has no bytes {} to {}", path().string(),
                                        in_quotes(name), begin, begin + count));
  state_->file.read(to, count, state_->data_begin + state_->begins.at(name) + begin,
                    in_quotes(name));
}

}  // namespace qpipe
