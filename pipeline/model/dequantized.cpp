#include "pipeline/model/dequantized.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "pipeline/model/finite.h"
#include "pipeline/model/read_back.h"

namespace qpipe {

namespace {

constexpr std::int64_t fp8_block_rows = 128;

bool can_be_source(StoredFormat format) {
  switch (format) {
    case StoredFormat::unquantized:
    case StoredFormat::ct_integer:
    case StoredFormat::ct_float8:
    case StoredFormat::ct_nvfp4:
    case StoredFormat::ct_mxfp4:
    case StoredFormat::fp8:
    case StoredFormat::mxfp4: return true;
    case StoredFormat::gptq_v1:
    case StoredFormat::gptq_v2:
    case StoredFormat::awq:
    case StoredFormat::bnb_four_bit:
    case StoredFormat::bnb_int8: return false;
  }
  return false;
}

// Modules with a part that only a packed linear has, or with codes for a weight.
std::set<std::string> packed_modules(const Checkpoint& checkpoint) {
  constexpr std::string_view weight = ".weight";
  constexpr std::array<std::string_view, 3> parts = {".weight_packed", ".weight_scale_inv",
                                                     ".weight_scale"};
  std::set<std::string> modules;
  for (const std::string& name : checkpoint.names()) {
    for (const std::string_view part : parts)
      if (name.ends_with(part)) modules.insert(name.substr(0, name.size() - part.size()));
    if (name.ends_with(weight) && checkpoint.info(name).dtype == DType::f8_e4m3)
      modules.insert(name.substr(0, name.size() - weight.size()));
  }
  return modules;
}

struct Sides {
  std::int64_t out = 0;
  std::int64_t in = 0;
};

// What the tensors themselves say: linears beside the decoder have no specification.
Sides sides_of(StoredFormat format, const Checkpoint& checkpoint, const std::string& module) {
  if (format == StoredFormat::ct_integer) {
    const TensorInfo& info = checkpoint.info(module + ".weight_shape");
    if (info.bytes() == 2 * static_cast<std::int64_t>(sizeof(std::int64_t))) {
      std::array<std::int64_t, 2> shape{};
      checkpoint.read(info.name, shape.data());
      return {shape[0], shape[1]};
    }
    std::array<std::int32_t, 2> shape{};
    if (info.bytes() == sizeof shape) checkpoint.read(info.name, shape.data());
    return {shape[0], shape[1]};
  }
  const bool codes_of_half_a_byte = format == StoredFormat::ct_nvfp4 ||
                                    format == StoredFormat::ct_mxfp4 ||
                                    format == StoredFormat::mxfp4;
  const TensorInfo& info =
      checkpoint.info(module + (codes_of_half_a_byte ? ".weight_packed" : ".weight"));
  return {info.rows(), info.cols() * (codes_of_half_a_byte ? 2 : 1)};
}

// One packed linear, of which rows can be read.
struct Packed {
  StoredFormat format;
  std::string module;
  Sides sides;
  DType dtype;                    // of what is presented
  std::vector<TensorInfo> parts;  // all that read_back needs
  std::int64_t unit = 1;          // rows that are read together

  // Rows of a part that belong to the weight's rows [begin, end): those rows, those of their
  // blocks, or all of a part that every row shares.
  std::vector<unsigned char> rows_of(const Checkpoint& checkpoint, const TensorInfo& part,
                                     std::int64_t begin, std::int64_t end, TensorInfo& view) const {
    view = part;
    const std::int64_t blocks = (sides.out + fp8_block_rows - 1) / fp8_block_rows;
    std::int64_t first = 0;
    std::int64_t count = 0;
    if (part.shape.size() == 2 && part.shape[0] == sides.out) {
      first = begin;
      count = end - begin;
    } else if (format == StoredFormat::fp8 && part.shape.size() == 2 && part.shape[0] == blocks) {
      first = begin / fp8_block_rows;
      count = (end + fp8_block_rows - 1) / fp8_block_rows - first;
    } else {
      std::vector<unsigned char> all(static_cast<std::size_t>(part.bytes()));
      checkpoint.read_stored(part.name, 0, part.bytes(), all.data());
      return all;
    }
    view.shape[0] = count;
    std::vector<unsigned char> rows(static_cast<std::size_t>(view.bytes()));
    const std::int64_t row_bytes = part.bytes() / part.shape[0];
    checkpoint.read_stored(part.name, first * row_bytes, count * row_bytes, rows.data());
    return rows;
  }

  // Bytes [begin, begin + count) of the weight.
  void read(const Checkpoint& checkpoint, std::int64_t begin, std::int64_t count,
            unsigned char* to) const {
    const std::int64_t row_bytes = sides.in * static_cast<std::int64_t>(size_of(dtype));
    const std::int64_t first = begin / row_bytes / unit * unit;
    const std::int64_t last =
        std::min(sides.out, ((begin + count + row_bytes - 1) / row_bytes + unit - 1) / unit * unit);
    std::vector<std::vector<unsigned char>> memory;
    PackedParts views;
    for (const TensorInfo& part : parts) {
      TensorInfo view;
      memory.push_back(rows_of(checkpoint, part, first, last, view));
      views[part.name.substr(module.size())] = view_of(view, memory.back().data());
    }
    Stream host(Backend::cpu, 0);
    std::vector<unsigned char> weight(static_cast<std::size_t>((last - first) * row_bytes));
    read_back(format, module, views, Tensor(weight.data(), dtype, last - first, sides.in), host);
    std::memcpy(to, weight.data() + (begin - first * row_bytes), static_cast<std::size_t>(count));
  }
};

// The types of the values between tensors that are not packed.
DType unpacked_type(const nlohmann::json& config) {
  const auto text = config.find("text_config");
  for (const nlohmann::json* part : {&config, text == config.end() ? nullptr : &*text})
    for (const char* key : {"dtype", "torch_dtype"})
      if (part != nullptr && part->is_object() && part->value(key, nlohmann::json()) == "float16")
        return DType::f16;
  return DType::bf16;
}

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

void check_scales(const Checkpoint& checkpoint, const TensorInfo& part) {
  if (!is_float(part.dtype)) return;
  std::vector<unsigned char> values(static_cast<std::size_t>(part.bytes()));
  checkpoint.read(part.name, values.data());
  check_finite(checkpoint, part, part.dtype, 0, values.data(), part.bytes());
}

}  // namespace

void present_dequantized(Checkpoint& checkpoint) {
  const std::string where = (checkpoint.folder() / "config.json").string();
  const StoredFormat format = read_stored_format(checkpoint.config(), where);
  if (format == StoredFormat::unquantized) return;
  if (!can_be_source(format))
    throw UserError(ExitCode::data,
                    fmt::format("{}: is quantized already ({}); give model.path the original "
                                "checkpoint, or one in FP8, MXFP4 or compressed-tensors' formats",
                                checkpoint.folder().string(), name_of(format)));
  const DType dtype = unpacked_type(checkpoint.config());
  for (const std::string& module : packed_modules(checkpoint)) {
    if (!is_packed(checkpoint, module)) continue;
    Packed packed{format, module, sides_of(format, checkpoint, module), dtype, {}, 1};
    check_packed_linear(format, checkpoint, module, packed.sides.out, packed.sides.in);
    std::vector<std::string> hidden;
    for (const std::string& name : weight_parts(checkpoint, module)) {
      hidden.push_back(name);
      packed.parts.push_back(checkpoint.info(name));
      if (packed.parts.back().name != module + ".weight")
        check_scales(checkpoint, packed.parts.back());
      // Zero points lie packed along the rows.
      if (name.ends_with(".weight_zero_point")) packed.unit = packed.sides.out;
    }
    if (format == StoredFormat::fp8) packed.unit = fp8_block_rows;
    const TensorInfo info{module + ".weight", dtype, {packed.sides.out, packed.sides.in}};
    checkpoint.present(
        info, hidden,
        [packed](const Checkpoint& from, std::int64_t begin, std::int64_t count, void* to) {
          packed.read(from, begin, count, static_cast<unsigned char*>(to));
        });
  }
  checkpoint.forget_quantization(name_of(format));
}

}  // namespace qpipe
