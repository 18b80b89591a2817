#include "stages/formats/bnb_format.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "kernels/activation.h"
#include "kernels/int8_rows.h"
#include "stages/formats/packing.h"

namespace qpipe {

namespace {

constexpr std::size_t longest_number =
    22;  // a positive float32 as Python writes it: 17 digits, a point, e-45

std::string torch_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::u8: return "uint8";
    default: throw std::invalid_argument("bitsandbytes has no " + std::string(name_of(dtype)));
  }
}

std::string kind_name(FourBitKind kind) { return kind == FourBitKind::nf4 ? "nf4" : "fp4"; }

// Python's repr: the shortest digits that read back as x; scientific below 1e-4 and from 1e16 on.
std::string python_number(double x) {
  std::array<char, 40> text{};
  const auto end =
      std::to_chars(text.data(), text.data() + text.size(), x, std::chars_format::scientific).ptr;
  const std::string scientific(text.data(), end);
  const auto e = scientific.find('e');
  const int exponent = std::stoi(scientific.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return scientific;
  const auto fixed_end =
      std::to_chars(text.data(), text.data() + text.size(), x, std::chars_format::fixed).ptr;
  const std::string fixed(text.data(), fixed_end);
  return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
}

QuantState state_of(std::int64_t out_features, std::int64_t in_features,
                    const FourBitSettings& settings) {
  QuantState state{settings.kind, settings.block_size, settings.dtype,
                   out_features,  in_features,         {}};
  if (settings.double_quant) state.nested.emplace();
  return state;
}

// Bytes of the quant_state tensor.
std::size_t state_bytes(const QuantState& state) {
  const std::size_t length = quant_state_text(state).size();
  return state.nested ? length - python_number(state.nested->offset).size() + longest_number
                      : length;
}

void check_finite(const PackedTensor& maxima) {
  float poison = 0.0f;  // NaN when some value is not finite
  for (std::size_t at = 0; at < maxima.data.bytes(); at += sizeof(float)) {
    float value = 0.0f;
    std::memcpy(&value, maxima.data.data() + at, sizeof(float));
    poison += value * 0.0f;
  }
  if (std::isnan(poison))
    throw std::invalid_argument(maxima.info.name + ": the weight has infinite or NaN elements");
}

}  // namespace

std::string quant_state_text(const QuantState& state) {
  std::string text = "{\"quant_type\": \"" + kind_name(state.kind) +
                     "\", \"blocksize\": " + std::to_string(state.block_size) + ", \"dtype\": \"" +
                     torch_name(state.dtype) + "\", \"shape\": [" +
                     std::to_string(state.out_features) + ", " + std::to_string(state.in_features) +
                     "]";
  if (state.nested)
    text += ", \"nested_blocksize\": " + std::to_string(state.nested->block_size) +
            ", \"nested_dtype\": \"float32\", \"nested_offset\": " +
            python_number(state.nested->offset);
  return text + "}";
}

std::vector<NamedTensor> four_bit_tensors(const std::string& module, std::int64_t out_features,
                                          std::int64_t in_features,
                                          const FourBitSettings& settings) {
  const std::string weight = module + ".weight";
  const std::int64_t elements = out_features * in_features;
  const std::int64_t bytes = (elements + 1) / 2;
  const std::int64_t blocks = block_count(elements, settings.block_size);
  const auto unit = static_cast<std::int64_t>(size_of(settings.storage));
  if (bytes % unit != 0)
    throw std::invalid_argument(weight + ": " + std::to_string(bytes) +
                                " packed bytes are no whole number of " +
                                torch_name(settings.storage) + " elements");
  std::vector<NamedTensor> tensors{
      {weight, settings.storage, {bytes / unit, 1}},
      {weight + ".absmax", settings.double_quant ? DType::u8 : DType::f32, {blocks}},
      {weight + ".quant_map", DType::f32, {16}}};
  if (settings.double_quant) {
    tensors.push_back(
        {weight + ".nested_absmax", DType::f32, {block_count(blocks, absmax_block_size)}});
    tensors.push_back({weight + ".nested_quant_map", DType::f32, {256}});
  }
  tensors.push_back(
      {weight + ".quant_state.bitsandbytes__" + kind_name(settings.kind),
       DType::u8,
       {static_cast<std::int64_t>(state_bytes(state_of(out_features, in_features, settings)))}});
  return tensors;
}

std::vector<PackedTensor> pack_four_bit(const std::string& module, std::int64_t out_features,
                                        std::int64_t in_features, const FourBitSettings& settings,
                                        Matrix<const std::uint8_t> packed,
                                        Matrix<const float> absmax, Stream& stream) {
  auto infos = four_bit_tensors(module, out_features, in_features, settings);
  require(packed.size() == (out_features * in_features + 1) / 2 &&
              absmax.size() == block_count(out_features * in_features, settings.block_size),
          "pack_four_bit: packed and absmax must be those of the whole weight");
  QuantState state = state_of(out_features, in_features, settings);
  std::vector<PackedTensor> tensors;
  tensors.push_back(downloaded_tensor(infos[0], packed, stream));
  const auto table = four_bit_table(settings.kind);
  PackedTensor stored_map = packed_tensor(infos[2], table.value.data(), sizeof(table.value));

  if (settings.double_quant) {
    Array<float> offset(1, 1, stream);
    Array<std::uint8_t> code(1, absmax.size(), stream);
    Array<float> nested_absmax(1, block_count(absmax.size(), absmax_block_size), stream);
    quantize_absmax(absmax, offset, code, nested_absmax, stream);
    float host_offset = 0.0f;
    copy_to_host(&host_offset, offset.view.data, sizeof(float), stream);
    if (!std::isfinite(host_offset))
      throw std::invalid_argument(infos[1].name + ": the weight has infinite or NaN elements");
    state.nested->offset = static_cast<double>(host_offset);
    const auto map = dynamic_map();
    tensors.push_back(downloaded_tensor(infos[1], code.view, stream));
    tensors.push_back(std::move(stored_map));
    tensors.push_back(downloaded_tensor(infos[3], nested_absmax.view, stream));
    tensors.push_back(packed_tensor(infos[4], map.data(), sizeof(map)));
  } else {
    tensors.push_back(downloaded_tensor(infos[1], absmax, stream));
    check_finite(tensors.back());
    tensors.push_back(std::move(stored_map));
  }
  std::string text = quant_state_text(state);
  text.resize(static_cast<std::size_t>(infos.back().shape[0]), ' ');
  tensors.push_back(packed_tensor(infos.back(), text.data(), text.size()));
  return tensors;
}

std::vector<NamedTensor> int8_tensors(const std::string& module, std::int64_t out_features,
                                      std::int64_t in_features) {
  return {{module + ".weight", DType::i8, {out_features, in_features}},
          {module + ".SCB", DType::f32, {out_features}},
          {module + ".weight_format", DType::u8, {}}};
}

std::vector<PackedTensor> pack_int8(const std::string& module, Matrix<const std::int8_t> code,
                                    Matrix<const float> scb, Stream& stream) {
  require(code.contiguous() && scb.size() == code.rows,
          "pack_int8: code must be contiguous and scb [1, N]");
  const auto infos = int8_tensors(module, code.rows, code.cols);
  constexpr std::uint8_t row_format = 0;
  std::vector<PackedTensor> tensors;
  tensors.push_back(downloaded_tensor(infos[0], code, stream));
  tensors.push_back(downloaded_tensor(infos[1], scb, stream));
  check_finite(tensors.back());
  tensors.push_back(packed_tensor(infos[2], &row_format, 1));
  return tensors;
}

namespace {

[[noreturn]] void bad_state(const std::string& key, const std::string& fault) {
  throw std::invalid_argument("quant_state: " + key + " " + fault);
}

const nlohmann::json& value_at(const nlohmann::json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end()) bad_state(key, "is missing");
  return *found;
}

std::int64_t positive(const nlohmann::json& value, const char* key) {
  if (!value.is_number_integer() || value.get<std::int64_t>() <= 0)
    bad_state(key, "must be a positive integer");
  return value.get<std::int64_t>();
}

std::string string_of(const nlohmann::json& json, const char* key) {
  const nlohmann::json& value = value_at(json, key);
  if (!value.is_string()) bad_state(key, "must be a string");
  return value.get<std::string>();
}

}  // namespace

QuantState parse_quant_state(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) throw std::invalid_argument("quant_state: the bytes are no JSON object");
  constexpr std::array known{"quant_type",       "blocksize",    "dtype",        "shape",
                             "nested_blocksize", "nested_dtype", "nested_offset"};
  for (const auto& item : json.items())
    if (std::find(known.begin(), known.end(), item.key()) == known.end())
      bad_state(item.key(), "is unknown");

  QuantState state;
  const std::string kind = string_of(json, "quant_type");
  if (kind != "nf4" && kind != "fp4") bad_state("quant_type", "must be nf4 or fp4, not " + kind);
  state.kind = kind == "nf4" ? FourBitKind::nf4 : FourBitKind::fp4;
  state.block_size = positive(value_at(json, "blocksize"), "blocksize");
  if (!is_block_size(state.block_size))
    bad_state("blocksize", "must be a power of two from 32 to 4096");
  const std::string dtype = string_of(json, "dtype");
  if (dtype == "float32")
    state.dtype = DType::f32;
  else if (dtype == "float16")
    state.dtype = DType::f16;
  else if (dtype == "bfloat16")
    state.dtype = DType::bf16;
  else
    bad_state("dtype", "must be float32, float16 or bfloat16, not " + dtype);
  const nlohmann::json& shape = value_at(json, "shape");
  if (!shape.is_array() || shape.size() != 2)
    bad_state("shape", "must be [out_features, in_features]");
  state.out_features = positive(shape[0], "shape");
  state.in_features = positive(shape[1], "shape");
  if (json.contains("nested_offset") || json.contains("nested_blocksize")) {
    state.nested.emplace();
    state.nested->block_size = positive(value_at(json, "nested_blocksize"), "nested_blocksize");
    const nlohmann::json& offset = value_at(json, "nested_offset");
    if (!offset.is_number()) bad_state("nested_offset", "must be a number");
    state.nested->offset = offset.get<double>();
    if (string_of(json, "nested_dtype") != "float32") bad_state("nested_dtype", "must be float32");
  }
  return state;
}

void unpack_four_bit(const FourBitView& view, const QuantState& state, Tensor weight,
                     Stream& stream) {
  const std::int64_t elements = state.out_features * state.in_features;
  const std::int64_t blocks = block_count(elements, state.block_size);
  require(weight.rows == state.out_features && weight.cols == state.in_features,
          "unpack_four_bit: weight must have the state's shape");
  require(view.packed.size() == (elements + 1) / 2,
          "unpack_four_bit: packed must have one byte for each two elements");
  require(view.absmax.size() == blocks,
          "unpack_four_bit: absmax must have one element for each block");
  require(view.absmax.dtype == (state.nested ? DType::u8 : DType::f32),
          "unpack_four_bit: absmax must be F32, or U8 if nested");
  Array<float> decoded;
  Matrix<const float> absmax;
  if (state.nested) {
    decoded = Array<float>(1, blocks, stream);
    dequantize_absmax({static_cast<const std::uint8_t*>(view.absmax.data), 1, blocks},
                      view.nested_quant_map, view.nested_absmax, state.nested->block_size,
                      static_cast<float>(state.nested->offset), decoded, stream);
    absmax = decoded;
  } else {
    absmax = {static_cast<const float*>(view.absmax.data), 1, blocks};
  }
  if (weight.dtype == state.dtype && weight.contiguous()) {
    dequantize_blocks(view.packed, absmax, state.kind, state.block_size, weight, stream);
  } else {
    TensorArray rounded(state.dtype, weight.rows, weight.cols, stream);
    dequantize_blocks(view.packed, absmax, state.kind, state.block_size, rounded, stream);
    convert(rounded, weight, stream);
  }
}

nlohmann::json bnb_config_json(const BnbConfig& config) {
  const FourBitSettings settings = config.four_bit.value_or(
      FourBitSettings{FourBitKind::fp4});  // transformers' defaults for int8
  const bool four_bit = config.four_bit.has_value();
  nlohmann::json json{
      {"quant_method", "bitsandbytes"},
      {"_load_in_4bit", four_bit},
      {"_load_in_8bit", !four_bit},
      {"load_in_4bit", four_bit},
      {"load_in_8bit", !four_bit},
      {"bnb_4bit_compute_dtype", four_bit ? torch_name(config.compute_dtype) : "float32"},
      {"bnb_4bit_quant_storage", torch_name(settings.storage)},
      {"bnb_4bit_quant_type", kind_name(settings.kind)},
      {"bnb_4bit_use_double_quant", settings.double_quant},
      {"llm_int8_enable_fp32_cpu_offload", false},
      {"llm_int8_has_fp16_weight", false},
      {"llm_int8_skip_modules", nullptr},
      {"llm_int8_threshold", 6.0}};
  if (!config.skip_modules.empty()) json["llm_int8_skip_modules"] = config.skip_modules;
  return json;
}

}  // namespace qpipe
