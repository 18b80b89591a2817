// Codes ↔ little-endian bitstreams of 32-bit words: element k occupies bits [b·k, b·k + b)
// (formats.md §1).
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// Stream along k for each output: words[k·bits/32, n].   code [out, in], words [in·bits/32, out]
// (GPTQ qweight). in is a multiple of 32; bits 2, 3, 4 or 8.
void pack_weights(Matrix<const std::uint8_t> code, int bits, Matrix<std::uint32_t> words,
                  Stream& stream);
void unpack_weights(Matrix<const std::uint32_t> words, int bits, Matrix<std::uint8_t> code,
                    Stream& stream);

// Stream along n for each group: words[g, n·bits/32] of zero[n, g] + offset modulo 2^bits.   zero
// [out, groups], words [groups, out·bits/32] (GPTQ qzeros): offset −1 writes format v1, 0 writes
// v2; unpack adds −offset.
void pack_zeros(Matrix<const std::uint8_t> zero, int bits, int offset, Matrix<std::uint32_t> words,
                Stream& stream);
void unpack_zeros(Matrix<const std::uint32_t> words, int bits, int offset,
                  Matrix<std::uint8_t> zero, Stream& stream);

// half[place[g], n] = scale[n, g] (GPTQ scales).   scale [out, groups] float32, place [1, groups] a
// permutation, half [groups, out]. inexact[0, 0] = 1 when some scale is not a finite value of
// float16, otherwise as it was. All on the device.
void pack_scales(Matrix<const float> scale, Matrix<const std::int32_t> place, Matrix<f16> half,
                 Matrix<std::int32_t> inexact, Stream& stream);

namespace cuda {
decltype(qpipe::pack_weights) pack_weights;
decltype(qpipe::unpack_weights) unpack_weights;
decltype(qpipe::pack_zeros) pack_zeros;
decltype(qpipe::unpack_zeros) unpack_zeros;
decltype(qpipe::pack_scales) pack_scales;
}  // namespace cuda

}  // namespace qpipe
