#include "pipeline/model/read_back.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>

#include "kernels/float4.h"
#include "kernels/float8.h"
#include "kernels/int8_rows.h"
#include "kernels/pack_rows.h"
#include "pipeline/files/error.h"
#include "pipeline/files/suggest.h"
#include "pipeline/model/config_json.h"
#include "stages/formats/awq_format.h"
#include "stages/formats/bnb_format.h"
#include "stages/formats/compressed_tensors_format.h"
#include "stages/formats/fp8_format.h"
#include "stages/formats/gptq_format.h"

namespace qpipe {

namespace {

using Json = nlohmann::json;
using Shape = std::vector<std::int64_t>;

// --- config.json

// The one of `formats` whose name the key has.
StoredFormat choose(const ConfigJson& config, const std::string& key, const std::string& value,
                    const std::vector<std::pair<std::string, StoredFormat>>& formats) {
  std::vector<std::string> names;
  for (const auto& [name, format] : formats) {
    if (name == value) return format;
    names.push_back(name);
  }
  throw UserError(ExitCode::unavailable,
                  fmt::format("{}: {} '{}' cannot be read here; supported: {}", config.where, key,
                              value, joined(names)));
}

// Absent, null, false, and {} or []: the option is not used.
void refuse_use(const ConfigJson& config, const std::string& key, const std::string& what) {
  const Json* value = find_value(config, key);
  if (value != nullptr && *value != false && !((value->is_structured()) && value->empty()))
    refuse(config, key, "is " + what + ", which cannot be read here", ExitCode::unavailable);
}

StoredFormat read_gptq(const ConfigJson& config) {
  refuse_use(config, "lm_head", "a quantized lm_head");
  if (read_text(config, "pack_dtype", "int32") != "int32")
    refuse(config, "pack_dtype", "must be int32 here", ExitCode::unavailable);
  const std::string key =
      config.object.contains("checkpoint_format") ? "checkpoint_format" : "format";
  return choose(config, key, read_text(config, key, "gptq"),
                {{"gptq", StoredFormat::gptq_v1}, {"gptq_v2", StoredFormat::gptq_v2}});
}

StoredFormat read_awq(const ConfigJson& config) {
  if (config.object.contains("bits") && read_integer(config, "bits", 1, 32) != 4)
    refuse(config, "bits", "must be 4 for awq", ExitCode::unavailable);
  std::string version = read_text(config, "version", "gemm");
  std::transform(version.begin(), version.end(), version.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return choose(config, "version", version, {{"gemm", StoredFormat::awq}});
}

StoredFormat read_compressed_tensors(const ConfigJson& config) {
  refuse_use(config, "kv_cache_scheme", "a quantized cache of keys and values");
  refuse_use(config, "transform_config", "a transform of weights or activations");
  if (const Json* sparsity = find_value(config, "sparsity_config");
      sparsity != nullptr && sparsity->is_object() && !sparsity->empty()) {
    const ConfigJson inner{*sparsity, config.where + ": sparsity_config"};
    if (read_text(inner, "format", "dense") != "dense")
      refuse(inner, "format", "must be dense here", ExitCode::unavailable);
  }
  if (const std::string status = read_text(config, "quantization_status", "compressed");
      status != "compressed")
    refuse(config, "quantization_status", "must be compressed: the weights are not packed yet",
           ExitCode::unavailable);
  if (const Json* groups = find_value(config, "config_groups");
      groups != nullptr && groups->is_object())
    for (const auto& [name, group] : groups->items()) {
      const Json* weights =
          group.is_object() && group.contains("weights") ? &group["weights"] : nullptr;
      if (weights == nullptr || !weights->is_object()) continue;
      const ConfigJson inner{*weights, config.where + ": config_groups." + name + ".weights"};
      if (const Json* order = find_value(inner, "actorder");
          order != nullptr && (*order == "group" || *order == true))
        refuse(inner, "actorder", "must be static or weight here: a group index is not read",
               ExitCode::unavailable);
    }
  return choose(config, "format", read_text(config, "format"),
                {{name_of(CtFormat::pack_quantized), StoredFormat::ct_integer},
                 {name_of(CtFormat::float_quantized), StoredFormat::ct_float8},
                 {name_of(CtFormat::nvfp4_pack_quantized), StoredFormat::ct_nvfp4},
                 {name_of(CtFormat::mxfp4_pack_quantized), StoredFormat::ct_mxfp4}});
}

StoredFormat read_bitsandbytes(const ConfigJson& config) {
  const bool four = read_flag(config, "load_in_4bit", read_flag(config, "_load_in_4bit", false));
  const bool eight = read_flag(config, "load_in_8bit", read_flag(config, "_load_in_8bit", false));
  if (four == eight) refuse(config, "load_in_4bit", "must be true, or else load_in_8bit");
  return four ? StoredFormat::bnb_four_bit : StoredFormat::bnb_int8;
}

StoredFormat read_fp8(const ConfigJson& config) {
  const Json* block = find_value(config, "weight_block_size");  // null: one scale a tensor
  if (block != nullptr && *block != Json{float8_block, float8_block})
    refuse(config, "weight_block_size",
           fmt::format("must be [{0}, {0}] or null here", float8_block), ExitCode::unavailable);
  const std::string scheme = read_text(config, "activation_scheme", "dynamic");
  if (scheme != "dynamic" && scheme != "static")
    refuse(config, "activation_scheme", "must be dynamic or static here", ExitCode::unavailable);
  return StoredFormat::fp8;
}

// --- the tensors of one packed linear

constexpr std::array all_bits = {2, 3, 4, 8};
constexpr std::initializer_list<DType> float_types = {DType::f32, DType::f16, DType::bf16};

// b with ⌈in·b/32⌉ words a row; nothing when no width or more than one has it.
std::optional<int> bits_of_words(std::int64_t in_features, std::int64_t words) {
  std::optional<int> found;
  for (const int bits : all_bits)
    if (packed_words(in_features, bits) == words) {
      if (found) return std::nullopt;
      found = bits;
    }
  return found;
}

struct Check {
  const Checkpoint& checkpoint;
  const std::string& module;
  std::vector<std::string> names;

  [[noreturn]] void fail(const std::string& message) const {
    throw UserError(ExitCode::data, checkpoint.folder().string() + ": " + message);
  }

  bool has(const char* part) const { return checkpoint.contains(module + part); }

  const TensorInfo& find(const char* part, std::initializer_list<DType> dtypes) {
    const std::string name = module + part;
    if (!checkpoint.contains(name)) {
      if (const auto fault = checkpoint.fault_of(name)) throw UserError(*fault);
      const std::string near = nearest_name(name, checkpoint.names_of(module));
      fail("tensor '" + name + "' is missing, and quantization_config asks for it" +
           (near.empty() ? "" : "; the nearest name is '" + near + "'"));
    }
    names.push_back(name);
    const TensorInfo& info = checkpoint.info(name);
    if (std::find(dtypes.begin(), dtypes.end(), info.dtype) == dtypes.end()) {
      std::string wanted;
      for (const DType dtype : dtypes)
        wanted += (wanted.empty() ? "" : " or ") + std::string(name_of(dtype));
      fail(
          fmt::format("tensor '{}' has dtype {}; {} is needed", name, name_of(info.dtype), wanted));
    }
    return info;
  }

  void expect_shape(const TensorInfo& info, std::initializer_list<Shape> shapes) const {
    if (std::find(shapes.begin(), shapes.end(), info.shape) == shapes.end())
      fail(fmt::format("tensor '{}' has shape {}, but its linear makes it {}", info.name,
                       info.shape, fmt::join(shapes, " or ")));
  }

  const TensorInfo& find(const char* part, std::initializer_list<DType> dtypes,
                         const Shape& shape) {
    const TensorInfo& info = find(part, dtypes);
    expect_shape(info, {shape});
    return info;
  }

  const TensorInfo& scalar(const char* part, DType dtype) {
    const TensorInfo& info = find(part, {dtype});
    expect_shape(info, {{}, {1}});
    return info;
  }

  // Groups that scales of this shape have, along dimension `axis`; the groups must be whole where
  // they have no index.
  std::int64_t groups_of(const TensorInfo& scales, std::size_t axis, std::int64_t in_features,
                         bool whole) const {
    const std::int64_t groups = scales.shape.size() == 2 ? scales.shape[axis] : 0;
    if (groups < 1 || groups > in_features || (whole && in_features % groups != 0))
      fail(fmt::format("tensor '{}' has shape {}: {} inputs are not divided into that many groups",
                       scales.name, scales.shape, in_features));
    return groups;
  }

  template <class T>
  std::vector<T> values(const TensorInfo& info) const {
    std::vector<T> result(static_cast<std::size_t>(info.bytes()) / sizeof(T));
    checkpoint.read(info.name, result.data());
    return result;
  }

  [[noreturn]] void content(const TensorInfo& info, const std::string& fault) const {
    fail("tensor '" + info.name + "' " + fault +
         "; the checkpoint is damaged, or of another version");
  }
};

QuantState state_of(const std::vector<unsigned char>& bytes) {
  return parse_quant_state(std::string(bytes.begin(), bytes.end()));
}

constexpr std::array quant_state_parts = {".weight.quant_state.bitsandbytes__nf4",
                                          ".weight.quant_state.bitsandbytes__fp4"};

PackedLinear check_four_bit(Check& check, std::int64_t out, std::int64_t in) {
  const bool is_fp4 = check.has(quant_state_parts[1]);
  if (!is_fp4 && !check.has(quant_state_parts[0]))
    check.fail("tensor '" + check.module + quant_state_parts[0] +
               "' (or ..._fp4) is missing, and quantization_config asks for it");
  const TensorInfo& stored_state = check.find(quant_state_parts[is_fp4 ? 1 : 0], {DType::u8});
  QuantState state;
  try {
    state = state_of(check.values<unsigned char>(stored_state));
  } catch (const std::invalid_argument& error) {
    check.content(stored_state, std::string("cannot be read: ") + error.what());
  }
  if ((state.kind == FourBitKind::fp4) != is_fp4)
    check.content(stored_state, "says another quant_type than its name");
  if (state.out_features != out || state.in_features != in)
    check.content(stored_state,
                  fmt::format("says shape [{}, {}], but config.json makes it [{}, {}]",
                              state.out_features, state.in_features, out, in));
  if (state.nested && !std::isfinite(static_cast<float>(state.nested->offset)))
    check.content(stored_state, "has an infinite nested_offset");

  const TensorInfo& weight =
      check.find(".weight", {DType::u8, DType::bf16, DType::f16, DType::f32});
  const std::int64_t bytes = (out * in + 1) / 2;
  if (weight.bytes() != bytes || weight.shape.size() != 2 ||
      (weight.shape[0] != 1 && weight.shape[1] != 1))
    check.fail(
        fmt::format("tensor '{}' has shape {} of {}, but the {} bytes of 4-bit codes of a weight "
                    "[{}, {}] are needed, as one column",
                    weight.name, weight.shape, name_of(weight.dtype), bytes, out, in));
  const std::int64_t blocks = block_count(out * in, state.block_size);
  check.find(".weight.absmax", {state.nested ? DType::u8 : DType::f32}, {blocks});
  const TensorInfo& map = check.find(".weight.quant_map", {DType::f32}, {16});
  const auto stored_map = check.values<float>(map);
  const FourBitTable table = four_bit_table(state.kind);
  for (std::size_t code = 0; code < 16;
       ++code)  // a few units in the last place: older versions computed it elsewhere
    if (!(std::fabs(stored_map[code] - table.value[code]) <= 1e-6f))
      check.content(map, "has other values than " + std::string(is_fp4 ? "FP4" : "NF4"));
  if (state.nested) {
    check.find(".weight.nested_absmax", {DType::f32},
               {block_count(blocks, state.nested->block_size)});
    check.find(".weight.nested_quant_map", {DType::f32}, {256});
  }
  return {check.names, 4, state.block_size, false};
}

}  // namespace

std::string name_of(StoredFormat format) {
  switch (format) {
    case StoredFormat::unquantized: return "unquantized";
    case StoredFormat::gptq_v1: return "gptq";
    case StoredFormat::gptq_v2: return "gptq_v2";
    case StoredFormat::awq: return "awq gemm";
    case StoredFormat::ct_integer: return "compressed-tensors pack-quantized";
    case StoredFormat::ct_float8: return "compressed-tensors float-quantized";
    case StoredFormat::ct_nvfp4: return "compressed-tensors nvfp4-pack-quantized";
    case StoredFormat::ct_mxfp4: return "compressed-tensors mxfp4-pack-quantized";
    case StoredFormat::bnb_four_bit: return "bitsandbytes 4 bit";
    case StoredFormat::bnb_int8: return "bitsandbytes LLM.int8";
    case StoredFormat::fp8: return "fp8";
    case StoredFormat::mxfp4: return "mxfp4";
  }
  throw std::logic_error("StoredFormat");
}

StoredFormat read_stored_format(const Json& config, const std::string& where) {
  const Json* found = find_value({config, where}, "quantization_config");
  if (found == nullptr) return StoredFormat::unquantized;
  if (!found->is_object()) refuse({config, where}, "quantization_config", "must be an object");
  const ConfigJson quantization{*found, where + ": quantization_config"};
  const std::string method = read_text(quantization, "quant_method");
  if (method == "gptq") return read_gptq(quantization);
  if (method == "awq") return read_awq(quantization);
  if (method == "compressed-tensors") return read_compressed_tensors(quantization);
  if (method == "bitsandbytes") return read_bitsandbytes(quantization);
  if (method == "fp8") return read_fp8(quantization);
  if (method == "mxfp4") return StoredFormat::mxfp4;
  throw UserError(ExitCode::unavailable,
                  fmt::format("{}: quant_method '{}' cannot be read here; supported: gptq, awq, "
                              "compressed-tensors, bitsandbytes, fp8, mxfp4",
                              quantization.where, method));
}

namespace {

std::int64_t rounded_up(std::int64_t n, std::int64_t divisor) {
  return (n + divisor - 1) / divisor;
}

PackedLinear check_gptq(Check& check, std::int64_t out, std::int64_t in) {
  const TensorInfo& qweight = check.find(".qweight", {DType::i32});
  const TensorInfo& qzeros = check.find(".qzeros", {DType::i32});
  const TensorInfo& scales = check.find(".scales", float_types);
  const TensorInfo& g_idx = check.find(".g_idx", {DType::i32});
  int bits = 0;
  for (const int candidate : all_bits)
    if (in % 32 == 0 && out % 32 == 0 && qweight.shape == Shape{in / 32 * candidate, out})
      bits = candidate;
  if (bits == 0)
    check.fail(
        fmt::format("tensor '{}' has shape {}, which holds no codes of 2, 3, 4 or 8 bits for a "
                    "weight [{}, {}] of sizes that are "
                    "multiples of 32",
                    qweight.name, qweight.shape, out, in));
  const std::int64_t groups = check.groups_of(scales, 0, in, false);
  check.expect_shape(scales, {{groups, out}});
  check.expect_shape(qzeros, {{groups, out / 32 * bits}});
  check.expect_shape(g_idx, {{in}});
  return {check.names, bits, rounded_up(in, groups), true};
}

PackedLinear check_ct_integer(Check& check, std::int64_t out, std::int64_t in) {
  const TensorInfo& packed = check.find(".weight_packed", {DType::i32});
  const std::optional<int> bits =
      packed.shape.size() == 2 ? bits_of_words(in, packed.shape[1]) : std::nullopt;
  if (!bits || packed.shape[0] != out)
    check.fail(
        fmt::format("tensor '{}' has shape {}, which holds no codes of 2, 3, 4 or 8 bits for a "
                    "weight [{}, {}]",
                    packed.name, packed.shape, out, in));
  const TensorInfo& scale = check.find(".weight_scale", float_types);
  const std::int64_t groups = check.groups_of(scale, 1, in, true);
  check.expect_shape(scale, {{out, groups}});
  const TensorInfo& shape = check.find(".weight_shape", {DType::i64, DType::i32}, {2});
  const auto wide = shape.dtype == DType::i64 ? check.values<std::int64_t>(shape) : Shape{};
  const auto narrow =
      shape.dtype == DType::i32 ? check.values<std::int32_t>(shape) : std::vector<std::int32_t>{};
  if (wide != Shape{out, in} && Shape(narrow.begin(), narrow.end()) != Shape{out, in})
    check.content(shape, fmt::format("says another shape than [{}, {}], which config.json makes it",
                                     out, in));
  const bool zeros = check.has(".weight_zero_point");
  if (zeros) check.find(".weight_zero_point", {DType::i32}, {packed_words(out, *bits), groups});
  return {check.names, *bits, in / groups, zeros};
}

}  // namespace

bool is_weight_or_part(std::string_view rest) {
  constexpr std::array<std::string_view, 8> parts = {
      "qweight",         "qzeros", "scales", "g_idx", "SCB", "input_scale", "input_global_scale",
      "activation_scale"};
  return rest.starts_with("weight") || std::find(parts.begin(), parts.end(), rest) != parts.end();
}

std::vector<std::string> weight_parts(const Checkpoint& checkpoint, const std::string& module) {
  std::vector<std::string> names = checkpoint.names_of(module);
  std::erase_if(names, [&](const std::string& name) {
    return !is_weight_or_part(std::string_view(name).substr(module.size() + 1));
  });
  return names;
}

bool is_packed(const Checkpoint& checkpoint, const std::string& module) {
  const auto names = weight_parts(checkpoint, module);
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    const DType dtype = checkpoint.info(name).dtype;
    return name != module + ".weight" ||
           std::find(float_types.begin(), float_types.end(), dtype) == float_types.end();
  });
}

PackedLinear check_packed_linear(StoredFormat format, const Checkpoint& checkpoint,
                                 const std::string& module, std::int64_t out, std::int64_t in) {
  Check check{checkpoint, module, {}};
  const auto whole = [&](std::int64_t size, std::int64_t divisor, const char* what) {
    if (size % divisor != 0)
      check.fail(fmt::format("linear '{}' has {} {}; {} needs a multiple of {}", module, size, what,
                             name_of(format), divisor));
  };
  switch (format) {
    case StoredFormat::unquantized: break;
    case StoredFormat::gptq_v1:
    case StoredFormat::gptq_v2: return check_gptq(check, out, in);
    case StoredFormat::awq: {
      whole(out, 8, "outputs");
      check.find(".qweight", {DType::i32}, {in, out / 8});
      const TensorInfo& scales = check.find(".scales", float_types);
      const std::int64_t groups = check.groups_of(scales, 0, in, true);
      check.expect_shape(scales, {{groups, out}});
      check.find(".qzeros", {DType::i32}, {groups, out / 8});
      return {check.names, 4, in / groups, true};
    }
    case StoredFormat::ct_integer: return check_ct_integer(check, out, in);
    case StoredFormat::ct_float8:
      check.find(".weight", {DType::f8_e4m3}, {out, in});
      check.expect_shape(check.find(".weight_scale", float_types), {{out, 1}, {1}, {}});
      return {check.names, 8, in, false};
    case StoredFormat::ct_nvfp4:
      whole(in, nvfp4_group, "inputs");
      check.find(".weight_packed", {DType::u8}, {out, in / 2});
      check.find(".weight_scale", {DType::f8_e4m3}, {out, in / nvfp4_group});
      check.scalar(".weight_global_scale", DType::f32);
      if (check.has(".input_global_scale"))
        check.scalar(".input_global_scale", DType::f32);  // W4A4
      return {check.names, 4, nvfp4_group, false};
    case StoredFormat::ct_mxfp4:
    case StoredFormat::mxfp4:
      whole(in, mxfp4_group, "inputs");
      check.find(".weight_packed", {DType::u8}, {out, in / 2});
      check.find(".weight_scale", {DType::u8}, {out, in / mxfp4_group});
      return {check.names, 4, mxfp4_group, false};
    case StoredFormat::bnb_four_bit: return check_four_bit(check, out, in);
    case StoredFormat::bnb_int8: {
      check.find(".weight", {DType::i8}, {out, in});
      check.find(".SCB", {DType::f32}, {out});
      if (check.has(".weight_format")) {  // written since bitsandbytes 0.38
        const TensorInfo& layout = check.scalar(".weight_format", DType::u8);
        if (check.values<std::uint8_t>(layout).at(0) != 0)
          check.content(layout, "is not 0 (\"row\"): a layout of one GPU generation");
      }
      return {check.names, 8, in, false};
    }
    case StoredFormat::fp8:
      check.find(".weight", {DType::f8_e4m3}, {out, in});
      check.expect_shape(
          check.find(".weight_scale_inv", {DType::f32, DType::f16, DType::bf16, DType::f8_e8m0}),
          {{rounded_up(out, float8_block), rounded_up(in, float8_block)}, {}, {1}, {1, 1}});
      for (const char* of_activations : {".activation_scale", ".input_scale"})
        if (check.has(of_activations)) check.find(of_activations, float_types);
      return {check.names, 8, float8_block, false};
  }
  throw std::logic_error("check_packed_linear: " + name_of(format));
}

ConstTensor view_of(const TensorInfo& info, const void* data) {
  if (info.shape.empty()) return {data, info.dtype, 1, 1};
  return {data, info.dtype, info.rows(), info.cols()};
}

namespace {

// Typed views of stored parts. int32 and uint32 words share their bytes, and so do the codes of one
// byte.
Matrix<const std::uint32_t> words(ConstTensor x) {
  return {static_cast<const std::uint32_t*>(x.data), x.rows, x.cols};
}
Matrix<const std::uint8_t> bytes(ConstTensor x) {
  return {static_cast<const std::uint8_t*>(x.data), x.rows, x.cols};
}

template <class T>
std::vector<T> on_host(ConstTensor x, Stream& stream) {
  std::vector<T> values(static_cast<std::size_t>(x.bytes()) / sizeof(T));
  copy_to_host(values.data(), x.data, values.size() * sizeof(T), stream);
  return values;
}

// An index beyond the scales would read other memory.
Matrix<const std::int32_t> checked_groups(const std::string& module, ConstTensor g_idx,
                                          std::int64_t groups, Stream& stream) {
  for (const std::int32_t group : on_host<std::int32_t>(g_idx, stream))
    if (group < 0 || group >= groups)
      throw UserError(
          ExitCode::data,
          fmt::format(
              "tensor '{}.g_idx' names group {}, but scales has {}; download the checkpoint again",
              module, group, groups));
  return g_idx.as<const std::int32_t>();
}

}  // namespace

void read_back(StoredFormat format, const std::string& module, const PackedParts& parts,
               Tensor weight, Stream& stream) {
  const auto has = [&](const char* name) { return parts.count(name) != 0; };
  const auto part = [&](const char* name) { return parts.at(name); };
  switch (format) {
    case StoredFormat::unquantized: break;
    case StoredFormat::gptq_v1:
    case StoredFormat::gptq_v2:
      return unpack_gptq({words(part(".qweight")), words(part(".qzeros")), part(".scales"),
                          checked_groups(module, part(".g_idx"), part(".scales").rows, stream)},
                         format == StoredFormat::gptq_v1 ? GptqFormat::v1 : GptqFormat::v2, weight,
                         stream);
    case StoredFormat::awq:
      return unpack_awq_linear({words(part(".qweight")), words(part(".qzeros")), part(".scales")},
                               weight, stream);
    case StoredFormat::ct_integer: {
      const auto packed = words(part(".weight_packed"));
      CtIntegerView view{packed, part(".weight_scale"), {}};
      if (has(".weight_zero_point")) view.weight_zero_point = words(part(".weight_zero_point"));
      return unpack_ct_integer(view, bits_of_words(weight.cols, packed.cols).value(), weight,
                               stream);
    }
    case StoredFormat::ct_float8:
      return unpack_ct_float8(bytes(part(".weight")), part(".weight_scale"), weight, stream);
    case StoredFormat::ct_nvfp4: {
      const float global_scale = on_host<float>(part(".weight_global_scale"), stream).at(0);
      return dequantize_nvfp4(bytes(part(".weight_packed")), bytes(part(".weight_scale")),
                              global_scale, weight, stream);
    }
    case StoredFormat::ct_mxfp4:
    case StoredFormat::mxfp4:
      return dequantize_mxfp4(bytes(part(".weight_packed")), bytes(part(".weight_scale")), weight,
                              stream);
    case StoredFormat::bnb_four_bit: {
      const auto state = state_of(on_host<unsigned char>(
          part(quant_state_parts[has(quant_state_parts[0]) ? 0 : 1]), stream));
      const ConstTensor packed = part(".weight");  // bytes, whatever the storage type calls them
      FourBitView view{{static_cast<const std::uint8_t*>(packed.data), 1, packed.bytes()},
                       part(".weight.absmax"),
                       {},
                       {}};
      if (state.nested) {
        view.nested_absmax = part(".weight.nested_absmax").as<const float>();
        view.nested_quant_map = part(".weight.nested_quant_map").as<const float>();
      }
      return unpack_four_bit(view, state, weight, stream);
    }
    case StoredFormat::bnb_int8: {
      const ConstTensor code = part(".weight");
      return dequantize_int8_rows(
          {static_cast<const std::int8_t*>(code.data), code.rows, code.cols},
          part(".SCB").as<const float>(), weight, stream);
    }
    case StoredFormat::fp8:
      return unpack_fp8(bytes(part(".weight")), part(".weight_scale_inv"), weight, stream);
  }
  throw std::logic_error("read_back: " + name_of(format));
}

}  // namespace qpipe
