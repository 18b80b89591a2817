// 8-bit floats e4m3fn (sign, 4 exponent bits of bias 7, 3 mantissa bits, no infinity) and weights
// quantized to them with one scale a row or one a block of 128 × 128. Source: OCP FP8; formats.md
// §4.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// The value of a code: 2^(e−7) · (1 + m/8), 2^−9 · m when e = 0; 0x7f and 0xff are NaN. Exact.
constexpr float e4m3_to_float(std::uint8_t code) {
  const std::uint32_t magnitude = code & 0x7fu;
  const std::uint32_t sign = std::uint32_t{code & 0x80u} << 24;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8) return (sign != 0 ? -0x1p-9f : 0x1p-9f) * static_cast<float>(magnitude);
  return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
}

// Round half to even; beyond ±448, infinity included, ±448; NaN gives 0x7f.
std::uint8_t to_e4m3(float x);

inline constexpr float e4m3_max = 448.0f;
inline constexpr std::int64_t float8_block = 128;

// What a scale of zero is stored as: 2^−23, 2^−10 or 2^−7, the type's epsilon (compressed-tensors).
// scale_dtype is f32, f16 or bf16.
float float8_zero_scale(DType scale_dtype);

// For each row: scale = max|w| / 448 rounded to scale_dtype (the type it will be stored in), the
// type's epsilon when that is 0; then code = e4m3(w / scale) with the float32 quotient. w [rows,
// cols] f32, f16 or bf16, code [rows, cols], scale [rows, 1]. A NaN in w makes its row's scale NaN,
// an infinity makes it infinite.
void quantize_float8_rows(ConstTensor w, DType scale_dtype, Matrix<std::uint8_t> code,
                          Matrix<float> scale, Stream& stream);

// The same for each block of 128 × 128, the last ones ragged, with a float32 scale.   scale
// [⌈rows/128⌉, ⌈cols/128⌉].
void quantize_float8_blocks(ConstTensor w, Matrix<std::uint8_t> code, Matrix<float> scale,
                            Stream& stream);

// w = e4m3(code) · scale[r / block_rows, c / block_cols] in float32, rounded once to w's type (f32,
// f16 or bf16). block_rows × block_cols is 1 × cols for rows, 128 × 128 for blocks.
void dequantize_float8(Matrix<const std::uint8_t> code, Matrix<const float> scale,
                       std::int64_t block_rows, std::int64_t block_cols, Tensor w, Stream& stream);

namespace cuda {
decltype(qpipe::quantize_float8_rows) quantize_float8_rows;
decltype(qpipe::quantize_float8_blocks) quantize_float8_blocks;
decltype(qpipe::dequantize_float8) dequantize_float8;
}  // namespace cuda

}  // namespace qpipe
