// Quantized checkpoints read back: which format config.json describes, what tensors a packed linear
// then has, and its weight. Formats and their words: formats.md §1-4. Activations that a format
// would quantize (compressed-tensors FP8 and NVFP4, LLM.int8) are not: what is read back is the
// weight.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/stream.h"
#include "pipeline/model/checkpoint.h"
#include "stages/architecture.h"

namespace qpipe {

enum class StoredFormat {
  unquantized,
  gptq_v1,
  gptq_v2,
  awq,
  ct_integer,
  ct_float8,
  ct_nvfp4,
  ct_mxfp4,
  bnb_four_bit,
  bnb_int8,
  fp8,
  mxfp4  // as gpt-oss is published; its stacks are presented as ct_mxfp4's parts are
         // (fused_experts.h)
};

// "gptq", "compressed-tensors nvfp4-pack-quantized", …
std::string name_of(StoredFormat format);

// From config.json's quantization_config. `where` ("DIR/config.json") goes into messages. Throws
// UserError: a method, format or option that cannot be read here (lists what can), or a key of the
// wrong type.
StoredFormat read_stored_format(const nlohmann::json& config, const std::string& where);

// Whether MODULE.rest is the weight of a linear MODULE or one of the parts that formats make of it.
// Other tensors may lie below its name, as a router's corrections do.
bool is_weight_or_part(std::string_view rest);

// Those of a linear.
std::vector<std::string> weight_parts(const Checkpoint& checkpoint, const std::string& module);

// Whether a linear has parts of a weight, or a weight that is no float.
bool is_packed(const Checkpoint& checkpoint, const std::string& module);

// What the tensors of a packed linear tell.
struct PackedLinear {
  std::vector<std::string> names;  // all of them, but the bias
  int bits = 0;
  std::int64_t group_size = 0;  // inputs that share a scale, the last group may have fewer;
                                // in_features for one scale a row
  bool zeros = false;           // zero points are stored
};

// Throws UserError(data) naming the first tensor of the linear that is missing or has another shape
// or dtype than the format says, and for small parts (weight_shape, quant_map, quant_state,
// weight_format) another content.
PackedLinear check_packed_linear(StoredFormat format, const Checkpoint& checkpoint,
                                 const std::string& module, std::int64_t out_features,
                                 std::int64_t in_features);

// A tensor in memory as the matrix that it is; a scalar is [1, 1].
ConstTensor view_of(const TensorInfo& info, const void* data);

// The tensors of one packed linear on the device, by the name's rest after the module: ".qweight",
// ".weight.absmax".
using PackedParts = std::map<std::string, ConstTensor>;

// weight [out, in] of any float type. The parts have passed check_packed_linear; throws
// UserError(data) when g_idx names no group.
void read_back(StoredFormat format, const std::string& module, const PackedParts& parts,
               Tensor weight, Stream& stream);

}  // namespace qpipe
