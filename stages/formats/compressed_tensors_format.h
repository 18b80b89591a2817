// compressed-tensors checkpoints: tensors and configuration as the library of that name and vLLM
// read them (formats.md §4).
//
// Type of weight_scale. Loaders put it into the model's dtype, so the scale must be a value of that
// dtype BEFORE codes are chosen.
//   pack-quantized: solve() rounds scales to float16, so the model must be stored as float16
//   (float32 holds them too; bfloat16 does not, and
//     pack_ct_integer refuses to round).
//   float-quantized: quantize_float8_rows takes the model's dtype; give the same one here.
//   nvfp4-, mxfp4-pack-quantized: e4m3 and E8M0 whatever the model's dtype.
// Every pack function throws std::runtime_error naming the tensor when a scale is not finite (for
// NVFP4 also check the value that accumulate_absmax gives: an infinite weight leaves finite
// scales).
#pragma once

#include "stages/formats/gptq_format.h"

namespace qpipe {

enum class CtFormat { pack_quantized, float_quantized, nvfp4_pack_quantized, mxfp4_pack_quantized };

// "pack-quantized", "float-quantized", …
const char* name_of(CtFormat format);

// --- pack-quantized: integer codes in groups or channels; bits 2, 3, 4 or 8 (3-bit words are
// dense, which compressed-tensors ≤ 0.17 is not)

// MODULE.weight_packed I32 [out, ⌈in·bits/32⌉], .weight_scale [out, groups], .weight_shape I64 [2],
// and when asymmetric .weight_zero_point I32 [⌈out·bits/32⌉, groups]. group_size −1: one group a
// channel.
std::vector<NamedTensor> ct_integer_tensors(const std::string& module, std::int64_t out_features,
                                            std::int64_t in_features, int bits,
                                            std::int64_t group_size, bool symmetric,
                                            DType scale_dtype);

// The same tensors with their contents. Downloads from the device. Throws std::invalid_argument
// when a scale is not a value of scale_dtype and when groups are not runs of columns: the format
// has no group index (use desc_act with static_groups, or act_group_aware).
std::vector<PackedTensor> pack_ct_integer(const std::string& module,
                                          const QuantizedLinear& quantized, DType scale_dtype,
                                          Stream& stream);

// A linear read back: weight [out, in] = scale · (code − zero) in its dtype. All parts on the
// device.
struct CtIntegerView {
  Matrix<const std::uint32_t> weight_packed;
  ConstTensor weight_scale;
  Matrix<const std::uint32_t> weight_zero_point;  // empty: symmetric
};
void unpack_ct_integer(const CtIntegerView& packed, int bits, Tensor weight, Stream& stream);

// --- float-quantized: e4m3 codes, one scale a channel, activations quantized by the server

// MODULE.weight F8_E4M3 [out, in], .weight_scale [out, 1].
std::vector<NamedTensor> ct_float8_tensors(const std::string& module, std::int64_t out_features,
                                           std::int64_t in_features, DType scale_dtype);
// code and scale of quantize_float8_rows.
std::vector<PackedTensor> pack_ct_float8(const std::string& module, Matrix<const std::uint8_t> code,
                                         Matrix<const float> scale, DType scale_dtype,
                                         Stream& stream);
// weight_scale [out, 1], or [1, 1] for one scale a tensor.
void unpack_ct_float8(Matrix<const std::uint8_t> code, ConstTensor weight_scale, Tensor weight,
                      Stream& stream);

// --- nvfp4-pack-quantized, mxfp4-pack-quantized: read back by dequantize_nvfp4 and
// dequantize_mxfp4 (kernels/float4.h)

// MODULE.weight_packed U8 [out, in/2], .weight_scale F8_E4M3 [out, in/16], .weight_global_scale F32
// [1].
std::vector<NamedTensor> ct_nvfp4_tensors(const std::string& module, std::int64_t out_features,
                                          std::int64_t in_features);
// packed and scale of quantize_nvfp4. One global_scale for q, k, v and one for gate, up: vLLM takes
// the largest of the linears it fuses.
std::vector<PackedTensor> pack_ct_nvfp4(const std::string& module,
                                        Matrix<const std::uint8_t> packed,
                                        Matrix<const std::uint8_t> scale, float global_scale,
                                        Stream& stream);

// MODULE.weight_packed U8 [out, in/2], .weight_scale U8 [out, in/32].
std::vector<NamedTensor> ct_mxfp4_tensors(const std::string& module, std::int64_t out_features,
                                          std::int64_t in_features);
std::vector<PackedTensor> pack_ct_mxfp4(const std::string& module,
                                        Matrix<const std::uint8_t> packed,
                                        Matrix<const std::uint8_t> scale, Stream& stream);

// --- quantization_config of config.json

// Linears that are quantized alike. Targets: class names ("Linear"), full module names, or "re:"
// and a regular expression; a name is preferred to a class. settings: bits, group_size, symmetric,
// desc_act, static_groups of pack-quantized, not read otherwise.
struct CtGroup {
  std::vector<std::string> targets{"Linear"};
  LinearSettings settings;
};
struct CtConfig {
  CtFormat format = CtFormat::pack_quantized;
  std::vector<CtGroup> groups{CtGroup{}};
  std::vector<std::string> ignore{
      "lm_head"};  // full names or "re:…" of linears that stay as they are
};
nlohmann::json ct_config_json(const CtConfig& config);

}  // namespace qpipe
