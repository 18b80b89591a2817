#include "stages/formats/compressed_tensors_format.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/activation.h"
#include "kernels/float4.h"
#include "kernels/float8.h"
#include "kernels/pack_rows.h"
#include "kernels/quantize_groups.h"
#include "stages/formats/packing.h"

namespace qpipe {

const char* name_of(CtFormat format) {
  switch (format) {
    case CtFormat::pack_quantized: return "pack-quantized";
    case CtFormat::float_quantized: return "float-quantized";
    case CtFormat::nvfp4_pack_quantized: return "nvfp4-pack-quantized";
    case CtFormat::mxfp4_pack_quantized: return "mxfp4-pack-quantized";
  }
  throw std::logic_error("CtFormat");
}

std::vector<NamedTensor> ct_integer_tensors(const std::string& module, std::int64_t out_features,
                                            std::int64_t in_features, int bits,
                                            std::int64_t group_size, bool symmetric,
                                            DType scale_dtype) {
  const std::int64_t groups = group_size > 0 ? in_features / group_size : 1;
  std::vector<NamedTensor> tensors{
      {module + ".weight_packed", DType::i32, {out_features, packed_words(in_features, bits)}},
      {module + ".weight_scale", scale_dtype, {out_features, groups}},
      {module + ".weight_shape", DType::i64, {2}}};
  if (!symmetric)
    tensors.push_back(
        {module + ".weight_zero_point", DType::i32, {packed_words(out_features, bits), groups}});
  return tensors;
}

std::vector<PackedTensor> pack_ct_integer(const std::string& module, const QuantizedLinear& q,
                                          DType scale_dtype, Stream& stream) {
  const std::int64_t out = q.code.view.rows;
  const std::int64_t in = q.code.view.cols;
  const std::int64_t groups = q.scale.view.cols;
  const int bits = q.settings.bits;
  const auto infos = ct_integer_tensors(module, out, in, bits, q.settings.group_size,
                                        q.settings.symmetric, scale_dtype);
  const ContiguousGroups stored = contiguous_groups(module, q, stream);
  std::vector<PackedTensor> tensors;

  Array<std::uint32_t> words(out, packed_words(in, bits), stream);
  pack_rows(q.code, bits, words, stream);
  tensors.push_back(downloaded_tensor(infos[0], words.view, stream));
  tensors.push_back(packed_scales(infos[1], stored.scale));
  tensors.push_back(packed_tensor(infos[2], std::vector<std::int64_t>{out, in}));
  if (!q.settings.symmetric) {
    Array<std::uint32_t> zero_words(packed_words(out, bits), groups, stream);
    pack_columns(upload_matrix(stored.zero, out, groups, stream), bits, zero_words, stream);
    tensors.push_back(downloaded_tensor(infos[3], zero_words.view, stream));
  }
  return tensors;
}

namespace {

Array<float> as_float32(ConstTensor x, Stream& stream) {
  Array<float> wide(x.rows, x.cols, stream);
  convert(x, wide.view, stream);
  return wide;
}

}  // namespace

void unpack_ct_integer(const CtIntegerView& packed, int bits, Tensor weight, Stream& stream) {
  const std::int64_t out = weight.rows;
  const std::int64_t in = weight.cols;
  const std::int64_t groups = packed.weight_scale.cols;
  require(packed.weight_scale.rows == out && groups > 0 && in % groups == 0,
          "unpack_ct_integer: weight_scale must be [out, groups]");
  Array<std::uint8_t> code(out, in, stream);
  unpack_rows(packed.weight_packed, bits, code, stream);
  Array<std::uint8_t> zero;
  if (packed.weight_zero_point.empty()) {
    const auto middle = static_cast<std::uint8_t>(1 << (bits - 1));
    zero = upload_matrix(std::vector<std::uint8_t>(static_cast<std::size_t>(out * groups), middle),
                         out, groups, stream);
  } else {
    zero = Array<std::uint8_t>(out, groups, stream);
    unpack_columns(packed.weight_zero_point, bits, zero, stream);
  }
  dequantize(code, as_float32(packed.weight_scale, stream), zero,
             runs_of_columns(in, groups, stream), weight, stream);
  stream.synchronize();
}

std::vector<NamedTensor> ct_float8_tensors(const std::string& module, std::int64_t out_features,
                                           std::int64_t in_features, DType scale_dtype) {
  return {{module + ".weight", DType::f8_e4m3, {out_features, in_features}},
          {module + ".weight_scale", scale_dtype, {out_features, 1}}};
}

std::vector<PackedTensor> pack_ct_float8(const std::string& module, Matrix<const std::uint8_t> code,
                                         Matrix<const float> scale, DType scale_dtype,
                                         Stream& stream) {
  const auto infos = ct_float8_tensors(module, code.rows, code.cols, scale_dtype);
  return {downloaded_tensor(infos[0], code, stream),
          packed_scales(infos[1], download_matrix(scale, stream))};
}

void unpack_ct_float8(Matrix<const std::uint8_t> code, ConstTensor weight_scale, Tensor weight,
                      Stream& stream) {
  const std::int64_t rows_of_a_scale = weight_scale.rows == code.rows ? 1 : code.rows;
  dequantize_float8(code, as_float32(weight_scale, stream), rows_of_a_scale, code.cols, weight,
                    stream);
  stream.synchronize();
}

std::vector<NamedTensor> ct_nvfp4_tensors(const std::string& module, std::int64_t out_features,
                                          std::int64_t in_features) {
  return {{module + ".weight_packed", DType::u8, {out_features, in_features / 2}},
          {module + ".weight_scale", DType::f8_e4m3, {out_features, in_features / nvfp4_group}},
          {module + ".weight_global_scale", DType::f32, {1}}};
}

namespace {

// Group scales as they are stored; `nan` is the code of a group that held a weight which is not
// finite.
PackedTensor packed_codes(NamedTensor info, Matrix<const std::uint8_t> scale, std::uint8_t nan,
                          Stream& stream) {
  const auto codes = download_matrix(scale, stream);
  if (std::find(codes.begin(), codes.end(), nan) != codes.end()) throw not_finite(info.name);
  return packed_tensor(std::move(info), codes);
}

}  // namespace

std::vector<PackedTensor> pack_ct_nvfp4(const std::string& module,
                                        Matrix<const std::uint8_t> packed,
                                        Matrix<const std::uint8_t> scale, float global_scale,
                                        Stream& stream) {
  const auto infos = ct_nvfp4_tensors(module, packed.rows, 2 * packed.cols);
  return {downloaded_tensor(infos[0], packed, stream), packed_codes(infos[1], scale, 0x7f, stream),
          packed_scales(infos[2], {global_scale})};
}

std::vector<NamedTensor> ct_mxfp4_tensors(const std::string& module, std::int64_t out_features,
                                          std::int64_t in_features) {
  return {{module + ".weight_packed", DType::u8, {out_features, in_features / 2}},
          {module + ".weight_scale", DType::u8, {out_features, in_features / mxfp4_group}}};
}

std::vector<PackedTensor> pack_ct_mxfp4(const std::string& module,
                                        Matrix<const std::uint8_t> packed,
                                        Matrix<const std::uint8_t> scale, Stream& stream) {
  const auto infos = ct_mxfp4_tensors(module, packed.rows, 2 * packed.cols);
  return {downloaded_tensor(infos[0], packed, stream), packed_codes(infos[1], scale, 255, stream)};
}

namespace {

using nlohmann::json;

// Objects of quantization arguments refuse unknown keys, so that only these are written.
json weight_arguments(CtFormat format, const LinearSettings& s) {
  json arguments{{"num_bits", 4}, {"type", "float"}, {"symmetric", true}, {"dynamic", false}};
  switch (format) {
    case CtFormat::pack_quantized: {
      const bool grouped = s.group_size > 0;
      arguments["num_bits"] = s.bits;
      arguments["type"] = "int";
      arguments["symmetric"] = s.symmetric;
      arguments["strategy"] = grouped ? "group" : "channel";
      arguments["group_size"] = grouped ? json(s.group_size) : json(nullptr);
      if (s.desc_act && s.static_groups) arguments["actorder"] = "static";
      break;
    }
    case CtFormat::float_quantized:
      arguments["num_bits"] = 8;
      arguments["strategy"] = "channel";
      arguments["group_size"] = nullptr;
      break;
    case CtFormat::nvfp4_pack_quantized:
      arguments["strategy"] = "tensor_group";
      arguments["group_size"] = nvfp4_group;
      arguments["scale_dtype"] = "torch.float8_e4m3fn";
      break;
    case CtFormat::mxfp4_pack_quantized:
      arguments["strategy"] = "group";
      arguments["group_size"] = mxfp4_group;
      arguments["scale_dtype"] = "torch.uint8";
      break;
  }
  return arguments;
}

json input_arguments(CtFormat format) {
  if (format != CtFormat::float_quantized) return nullptr;
  return {{"num_bits", 8},       {"type", "float"},       {"symmetric", true},
          {"strategy", "token"}, {"group_size", nullptr}, {"dynamic", true}};
}

}  // namespace

json ct_config_json(const CtConfig& config) {
  json groups = json::object();
  for (std::size_t i = 0; i < config.groups.size(); ++i)
    groups["group_" + std::to_string(i)] = {
        {"targets", config.groups[i].targets},
        {"weights", weight_arguments(config.format, config.groups[i].settings)},
        {"input_activations", input_arguments(config.format)},
        {"output_activations", nullptr}};
  return {{"quant_method", "compressed-tensors"}, {"format", name_of(config.format)},
          {"quantization_status", "compressed"},  {"ignore", config.ignore},
          {"kv_cache_scheme", nullptr},           {"config_groups", groups}};
}

}  // namespace qpipe
