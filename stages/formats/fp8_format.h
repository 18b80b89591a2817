// Hugging Face block-wise FP8 checkpoints (quant_method "fp8", as DeepSeek-V3 is published):
// formats.md §4. Linears that a server fuses (q, k, v; gate, up) need out_features % 128 = 0, all
// but the last, so that blocks do not cross from one to the next.
#pragma once

#include "stages/formats/gptq_format.h"

namespace qpipe {

// MODULE.weight F8_E4M3 [out, in], .weight_scale_inv F32 [⌈out/128⌉, ⌈in/128⌉]: a multiplier
// despite its name.
std::vector<NamedTensor> fp8_tensors(const std::string& module, std::int64_t out_features,
                                     std::int64_t in_features);

// code and scale of quantize_float8_blocks. Downloads from the device. Throws std::runtime_error
// naming the tensor when a scale is not finite.
std::vector<PackedTensor> pack_fp8(const std::string& module, Matrix<const std::uint8_t> code,
                                   Matrix<const float> scale, Stream& stream);

// A linear read back: weight [out, in] = code · scale of its block, in weight's dtype.
// weight_scale_inv of any float type or E8M0, on the device; one scale is the whole tensor's.
void unpack_fp8(Matrix<const std::uint8_t> code, ConstTensor weight_scale_inv, Tensor weight,
                Stream& stream);

// quantization_config of config.json. modules_to_not_convert: full names; loaders leave only these
// unquantized, so it must list lm_head.
nlohmann::json fp8_config_json(const std::vector<std::string>& modules_to_not_convert);

}  // namespace qpipe
