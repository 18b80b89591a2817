// Block-wise 4-bit codes of bitsandbytes (NF4, FP4) and the 8-bit codes of their block maxima
// ("double quantization").
//
// A weight [N, K] is read as one run of N·K elements, row after row, cut into blocks of block_size;
// only the last block may be shorter. Ranges of whole blocks can be quantized apart and by
// different ranks: the bytes are the same. Source: formats.md §3 and bitsandbytes 0.50.2. Both
// backends give the bytes of its CPU build. Its CUDA build differs: it multiplies by an approximate
// reciprocal (--use_fast_math) and, for FP4, compares |x| with rounded constants; so codes may
// differ next to thresholds.
#pragma once

#include <array>

#include "kernels/stream.h"

namespace qpipe {

enum class FourBitKind { nf4, fp4 };

// value[code]; ordered[i]: the code of the i-th smallest value; threshold[i]: the midpoint of the
// i-th and the next value, in float32.
struct FourBitTable {
  std::array<float, 16> value;
  std::array<std::uint8_t, 16> ordered;
  std::array<float, 15> threshold;
};

constexpr FourBitTable four_bit_table(FourBitKind kind) {
  FourBitTable table{};
  if (kind == FourBitKind::nf4) {
    // Quantiles of the normal distribution (QLoRA, arXiv 2305.14314).
    table.value = {-1.0f,
                   -0.6961928009986877f,
                   -0.5250730514526367f,
                   -0.39491748809814453f,
                   -0.28444138169288635f,
                   -0.18477343022823334f,
                   -0.09105003625154495f,
                   0.0f,
                   0.07958029955625534f,
                   0.16093020141124725f,
                   0.24611230194568634f,
                   0.33791524171829224f,
                   0.44070982933044434f,
                   0.5626170039176941f,
                   0.7229568362236023f,
                   1.0f};
    table.ordered = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  } else {
    // Sign, two bits of exponent, one of mantissa; the largest is 12.
    constexpr float magnitude[8] = {0.0f, 0.0625f, 8.0f, 12.0f, 4.0f, 6.0f, 2.0f, 3.0f};
    for (std::size_t code = 0; code < 8; ++code) {
      table.value[code] = magnitude[code] / 12.0f;
      table.value[code + 8] = code == 0 ? 0.0f : -table.value[code];
    }
    table.ordered = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};  // 8 is a second 0
  }
  for (std::size_t i = 0; i < 15; ++i)
    table.threshold[i] = (table.value[table.ordered[i]] + table.value[table.ordered[i + 1]]) / 2.0f;
  return table;
}

// 32, 64, 128, … 4096.
constexpr bool is_block_size(std::int64_t size) {
  return size >= 32 && size <= 4096 && (size & (size - 1)) == 0;
}
constexpr std::int64_t block_count(std::int64_t elements, std::int64_t block_size) {
  return (elements + block_size - 1) / block_size;
}

// absmax[b] = max |w| of block b; code = ordered[#{i : x > threshold[i]}] with x = w · (1 /
// max(absmax, 1e-38)), every operation rounded to float32. Ties go to the smaller value (of an FP4
// pair: towards −1); FP4: 0 < x ≤ 1/384 gets code 8, the second 0 (read as +0 here, as its stored
// map says; some loaders read −0). Packed: element 2i in the high nibble of byte i, 2i + 1 in the
// low one; an odd last element is paired with the code of 0. A shorter last block is divided: x = w
// / max(absmax, 1e-38), and stores that maximum (as bitsandbytes does). A block of zeros has absmax
// 0 and the codes of 0 (NF4 7, FP4 0). A NaN makes its block's absmax NaN, an infinity makes it
// infinite; callers check absmax (x = NaN gets ordered[15]). w [N, K] contiguous, f32, f16 or bf16;
// absmax [1, block_count(N·K)]; packed [1, ⌈N·K/2⌉].
void quantize_blocks(ConstTensor w, FourBitKind kind, std::int64_t block_size, Matrix<float> absmax,
                     Matrix<std::uint8_t> packed, Stream& stream);

// w = value[code] · absmax[block] in float32, rounded once to w's type (f32, f16 or bf16). Shapes
// as above.
void dequantize_blocks(Matrix<const std::uint8_t> packed, Matrix<const float> absmax,
                       FourBitKind kind, std::int64_t block_size, Tensor w, Stream& stream);

// bitsandbytes' signed dynamic map (arXiv 1511.04561): for i = 0 … 6 the 2^i midpoints of 2^i + 1
// even steps from 0.1 to 1, times 10^(i−6), and their negatives; 0 and 1. Ascending. The bits are
// those of PyTorch's CPU linspace (fused multiply-add).
std::array<float, 256> dynamic_map();

inline constexpr std::int64_t absmax_block_size = 256;

// offset = mean(absmax), rounded from double; y = absmax − offset; nested_absmax[b] = max |y| of
// each 256; x = y · (1 / nested_absmax[b]). bitsandbytes' CPU build looks x up in 65,536 even steps
// of [−1, 1]: x̃ = −1 + 2i/65535, i = ⌊fma((x + 1)/2, 65535, 1/2)⌋; code = #{j : x̃ > (map[j] +
// map[j+1])/2}. A block whose y are all 0 gets code 0, and nested_absmax 0. bitsandbytes sums in
// float32 in an order that depends on the processor: its offset can differ in the last bits where
// the sum of absmax is inexact, and then a few codes by one. If any absmax is NaN or infinite, so
// is offset: callers check it. absmax, code [1, n]; offset [1, 1]; nested_absmax [1, ⌈n/256⌉].
void quantize_absmax(Matrix<const float> absmax, Matrix<float> offset, Matrix<std::uint8_t> code,
                     Matrix<float> nested_absmax, Stream& stream);

// absmax[i] = map[code[i]] · nested_absmax[i / block_size] + offset, two roundings.  map [1, 256]
// on the device: the stored one.
void dequantize_absmax(Matrix<const std::uint8_t> code, Matrix<const float> map,
                       Matrix<const float> nested_absmax, std::int64_t block_size, float offset,
                       Matrix<float> absmax, Stream& stream);

// The midpoints of the dynamic map, as quantize_absmax compares them.
struct MapThresholds {
  float value[255];
};

namespace cuda {
decltype(qpipe::quantize_blocks) quantize_blocks;
decltype(qpipe::dequantize_blocks) dequantize_blocks;
void quantize_absmax(Matrix<const float> absmax, const MapThresholds& thresholds,
                     Matrix<float> offset, Matrix<std::uint8_t> code, Matrix<float> nested_absmax,
                     Stream& stream);
decltype(qpipe::dequantize_absmax) dequantize_absmax;
}  // namespace cuda

}  // namespace qpipe
