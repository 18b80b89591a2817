// 4-bit floats e2m1 (sign, 2 exponent bits, 1 mantissa bit) in groups that share a scale: NVFP4 (16
// weights, an e4m3 scale, one float32 scale a tensor) and MXFP4 (32 weights, a power of two).
// Source: OCP MX; compressed-tensors; formats.md §4.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// Codes are sign << 3 | index of {0, 0.5, 1, 1.5, 2, 3, 4, 6}.
constexpr float e2m1_to_float(std::uint8_t code) {
  constexpr float magnitude[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return (code & 8u) != 0 ? -magnitude[code & 7u] : magnitude[code & 7u];
}

// Nearest, ties to the even index; beyond ±6 and for NaN, ±6. The sign is x's sign bit, so that −0
// and what rounds to it have code 8 (compressed-tensors stores 0 for an exact −0).
std::uint8_t to_e2m1(float x);

// E8M0: 2^(code − 127), 255 is NaN.
constexpr float e8m0_to_float(std::uint8_t code) {
  if (code == 255) return std::bit_cast<float>(0x7fc00000u);
  return code == 0 ? 0x1p-127f : std::bit_cast<float>(std::uint32_t{code} << 23);
}

// The scale of an MXFP4 group: 127 + ⌊log2(absmax, to the next power of two if its mantissa is 1.75
// or more)⌋ − 2, at least 0, so that absmax / scale is in [3.5, 7). 255 when absmax is not finite.
std::uint8_t mxfp4_scale(float absmax);

inline constexpr std::int64_t nvfp4_group = 16;
inline constexpr std::int64_t mxfp4_group = 32;

// The scale of NVFP4 tensors whose largest magnitude is absmax: 2688 / absmax = 448 · 6 / absmax,
// which lets group scales use all of e4m3. 1 when that is not finite. Linears that are run as one
// (q, k, v; gate, up) need one value for all.
float nvfp4_global_scale(float absmax);

// largest = max(largest, max|w|): over a set of tensors when called for each. largest [1, 1], to be
// zeroed before; a NaN in w stays. w f32, f16 or bf16.
void accumulate_absmax(ConstTensor w, Matrix<float> largest, Stream& stream);

// For each group of 16: scale = e4m3(global_scale · (max|w| / 6)), 0.125 when that is 0; then code
// = e2m1(w / (scale / global_scale)). packed[r, k] holds columns 2k (low nibble) and 2k + 1.  All
// in float32. w [rows, cols] f32, f16 or bf16, packed [rows, cols/2], scale [rows, cols/16] (codes
// of e4m3). 16 divides cols. A weight that is not finite makes its group's scale NaN (from NaN) or
// 448 (from infinity).
void quantize_nvfp4(ConstTensor w, float global_scale, Matrix<std::uint8_t> packed,
                    Matrix<std::uint8_t> scale, Stream& stream);

// w = e2m1 · (e4m3(scale) / global_scale) in float32, rounded once to w's type.
void dequantize_nvfp4(Matrix<const std::uint8_t> packed, Matrix<const std::uint8_t> scale,
                      float global_scale, Tensor w, Stream& stream);

// For each group of 32: scale = mxfp4_scale(max|w|), code = e2m1(w / 2^(scale − 127)).   scale
// [rows, cols/32] (E8M0). 32 divides cols.
void quantize_mxfp4(ConstTensor w, Matrix<std::uint8_t> packed, Matrix<std::uint8_t> scale,
                    Stream& stream);

// w = e2m1 · 2^(scale − 127), rounded once to w's type.
void dequantize_mxfp4(Matrix<const std::uint8_t> packed, Matrix<const std::uint8_t> scale, Tensor w,
                      Stream& stream);

namespace cuda {
decltype(qpipe::accumulate_absmax) accumulate_absmax;
decltype(qpipe::quantize_nvfp4) quantize_nvfp4;
decltype(qpipe::dequantize_nvfp4) dequantize_nvfp4;
decltype(qpipe::quantize_mxfp4) quantize_mxfp4;
decltype(qpipe::dequantize_mxfp4) dequantize_mxfp4;
}  // namespace cuda

}  // namespace qpipe
