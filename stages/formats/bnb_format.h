// The bitsandbytes checkpoint format: tensors of one quantized linear, and the configuration that
// loaders read (formats.md §3).
#pragma once

#include <optional>

#include "kernels/blockwise.h"
#include "stages/formats/gptq_format.h"

namespace qpipe {

struct FourBitSettings {
  FourBitKind kind = FourBitKind::nf4;
  std::int64_t block_size = 64;
  bool double_quant = false;
  DType storage =
      DType::u8;  // bnb_4bit_quant_storage: u8, bf16, f16 or f32; the same bytes under another name
  DType dtype = DType::bf16;  // of the weight that was quantized: loaders dequantize to it
};

// MODULE.weight, .weight.absmax, .weight.quant_map, .weight.quant_state.bitsandbytes__nf4 (or fp4),
// with double quantization also .weight.nested_absmax and .weight.nested_quant_map: shapes known
// before anything is quantized. The length of the quant_state depends on the digits of
// nested_offset, so with double quantization it is the longest possible one, and spaces, which JSON
// ignores, fill it up. Throws std::invalid_argument when the packed bytes are no whole number of
// storage elements.
std::vector<NamedTensor> four_bit_tensors(const std::string& module, std::int64_t out_features,
                                          std::int64_t in_features,
                                          const FourBitSettings& settings);

// The same tensors with their contents, from the result of quantize_blocks on the whole weight.
// Quantizes absmax when double_quant. Throws std::invalid_argument when a maximum is infinite or
// NaN: the weight was.
std::vector<PackedTensor> pack_four_bit(const std::string& module, std::int64_t out_features,
                                        std::int64_t in_features, const FourBitSettings& settings,
                                        Matrix<const std::uint8_t> packed,
                                        Matrix<const float> absmax, Stream& stream);

// MODULE.weight I8 [out, in], MODULE.SCB F32 [out], MODULE.weight_format U8 [] = 0 ("row").
std::vector<NamedTensor> int8_tensors(const std::string& module, std::int64_t out_features,
                                      std::int64_t in_features);

// From the result of quantize_int8_rows. Throws std::invalid_argument when a maximum is infinite or
// NaN.
std::vector<PackedTensor> pack_int8(const std::string& module, Matrix<const std::int8_t> code,
                                    Matrix<const float> scb, Stream& stream);

// Of the scales that are quantized, too. Beside QuantState and not in it: clang takes a nested
// class with values of its own for one that std::optional cannot make.
struct NestedState {
  std::int64_t block_size = absmax_block_size;
  double offset = 0.0;  // a float32
};

// The contents of .quant_state.bitsandbytes__*.
struct QuantState {
  FourBitKind kind = FourBitKind::nf4;
  std::int64_t block_size = 64;
  DType dtype = DType::bf16;
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  std::optional<NestedState> nested;  // with double quantization
};

// The bytes that bitsandbytes writes: Python's json.dumps.
std::string quant_state_text(const QuantState& state);

// Throws std::invalid_argument that names the key: bad JSON, a missing or unknown key (bitsandbytes
// refuses those too), a value of the wrong kind or beyond what bitsandbytes has.
QuantState parse_quant_state(const std::string& text);

// A linear read back into `weight` [out, in] of any float type: the four-bit values times absmax,
// rounded to state.dtype as bitsandbytes does, then to weight's. The tensors on the device: packed,
// the bytes of .weight as [1, n]; absmax, F32 [1, blocks] or U8 with nested.
struct FourBitView {
  Matrix<const std::uint8_t> packed;
  ConstTensor absmax;
  Matrix<const float> nested_absmax;     // [1, blocks / nested.block_size rounded up]
  Matrix<const float> nested_quant_map;  // [1, 256]
};
void unpack_four_bit(const FourBitView& view, const QuantState& state, Tensor weight,
                     Stream& stream);

// quantization_config of config.json. skip_modules: an explicit list switches off transformers' own
// choice, so that it must name lm_head.
struct BnbConfig {
  std::optional<FourBitSettings> four_bit;  // LLM.int8 otherwise
  DType compute_dtype = DType::bf16;
  std::vector<std::string> skip_modules;  // null when empty
};
nlohmann::json bnb_config_json(const BnbConfig& config);

}  // namespace qpipe
