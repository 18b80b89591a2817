// What a linear becomes in a checkpoint: one switch over the formats (formats.md), one over the
// kinds of codes.
#pragma once

#include "stages/formats/bnb_format.h"
#include "stages/formats/gptq_format.h"

namespace qpipe {

// The container: names and layout of the tensors, and the quantization_config that loaders read.
enum class Format { gptq, gptq_v2, awq, compressed_tensors, bitsandbytes, fp8 };

// "gptq", "gptq_v2", "awq", "compressed-tensors", "bitsandbytes", "fp8".
const char* name_of(Format format);

// Codes that follow from the weights alone, without calibration; integer codes come from solve().
enum class Codec { integer, nf4, fp4, int8_rows, float8_rows, float8_blocks, nvfp4, mxfp4 };

struct StorageSettings {
  Format format = Format::gptq;
  Codec codec = Codec::integer;
  DType dtype =
      DType::f16;  // of the tensors beside the linears, and of the scales that share their type
  FourBitSettings four_bit{};  // of nf4 and fp4
};

// The tensors of one linear: names, types and shapes, known before anything is quantized. settings
// is read for integer codes.
std::vector<NamedTensor> stored_tensors(const std::string& module, std::int64_t out_features,
                                        std::int64_t in_features, const LinearSettings& settings,
                                        const StorageSettings& storage);

// The tensors of a linear that solve() has quantized. Throws as the formats' pack functions do.
std::vector<PackedTensor> pack_integer(const std::string& module, const QuantizedLinear& quantized,
                                       const StorageSettings& storage, Stream& stream);

// Quantizes and packs linears by a codec other than integer. They read one input, so that servers
// run them as one: NVFP4 gives them one global scale. Throws std::runtime_error or
// std::invalid_argument naming the module when a weight is not finite.
std::vector<PackedTensor> cast_linears(const std::vector<const Linear*>& linears,
                                       const StorageSettings& storage, Stream& stream);

}  // namespace qpipe
