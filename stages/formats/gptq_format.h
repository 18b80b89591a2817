// The GPTQ checkpoint format: packed tensors of a solved linear, and the configuration that loaders
// read (formats.md §1).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "stages/solve.h"

namespace qpipe {

enum class GptqFormat { v1, v2 };  // v1 stores zero − 1, v2 stores zero

struct NamedTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
};

struct PackedTensor {
  NamedTensor info;
  HostBuffer data;
};

// MODULE.qweight, .qzeros, .scales, .g_idx: shapes known before anything is solved.
std::vector<NamedTensor> gptq_tensors(const std::string& module, std::int64_t out_features,
                                      std::int64_t in_features, int bits, std::int64_t group_size);

// The same tensors with their contents. Downloads from the device.
std::vector<PackedTensor> pack_gptq(const std::string& module, const QuantizedLinear& quantized,
                                    GptqFormat format, Stream& stream);

// Adds 1 to every field of packed v1 zeros: the same zeros in v2.
void zeros_v1_to_v2(std::vector<unsigned char>& qzeros, int bits);

// A linear read back: weight [out, in] = scales · (code − zero) in its dtype. All parts on the
// device: qweight [in·bits/32, out], qzeros [groups, out·bits/32], scales [groups, out] of any
// float type, g_idx host.
struct PackedLinearView {
  Matrix<const std::uint32_t> qweight;
  Matrix<const std::uint32_t> qzeros;
  ConstTensor scales;
  Matrix<const std::int32_t> g_idx;
};
void unpack_gptq(const PackedLinearView& packed, GptqFormat format, Tensor weight, Stream& stream);

// quantization_config of config.json, also quantize_config.json. `overrides`: per-module settings
// as GPTQModel's `dynamic`.
struct GptqConfig {
  LinearSettings settings;
  GptqFormat format = GptqFormat::v1;
  bool true_sequential = true;
  nlohmann::json dynamic;  // object or null
  std::string version;     // qpipe's
};
nlohmann::json gptq_config_json(const GptqConfig& config);

}  // namespace qpipe
