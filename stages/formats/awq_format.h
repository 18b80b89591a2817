// AWQ checkpoints for GEMM kernels, 4 bits: formats.md §2. The zero is stored as it is (GPTQ v1
// stores zero − 1), and scales are float16, as solve() rounds them.
#pragma once

#include "stages/formats/gptq_format.h"

namespace qpipe {

// MODULE.qweight I32 [in, out/8], .qzeros I32 [groups, out/8], .scales F16 [groups, out].
std::vector<NamedTensor> awq_tensors(const std::string& module, std::int64_t out_features,
                                     std::int64_t in_features, std::int64_t group_size);

// The same tensors with their contents. Downloads from the device. 4 bits, out a multiple of 32,
// groups that are runs of columns; throws std::invalid_argument naming the module otherwise. A
// symmetric linear is stored with its zero, 8.
std::vector<PackedTensor> pack_awq_linear(const std::string& module,
                                          const QuantizedLinear& quantized, Stream& stream);

// A linear read back: weight [out, in] = scales · (code − zero) in its dtype. All parts on the
// device; scales of any float type.
struct AwqLinearView {
  Matrix<const std::uint32_t> qweight;
  Matrix<const std::uint32_t> qzeros;
  ConstTensor scales;
};
void unpack_awq_linear(const AwqLinearView& packed, Tensor weight, Stream& stream);

// quantization_config of config.json. modules_to_not_convert: names that loaders match as
// substrings (AutoAWQ, vLLM) or suffixes (transformers); empty is written as null. They are also
// written as GPTQModel's `dynamic`, which is all that it reads.
nlohmann::json awq_config_json(std::int64_t group_size,
                               const std::vector<std::string>& modules_to_not_convert);

}  // namespace qpipe
