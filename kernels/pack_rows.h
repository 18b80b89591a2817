// Codes ↔ 32-bit words as compressed-tensors (formats.md §4) and AWQ's GEMM kernels (§2) read them.
// Codes are unsigned, 0 … 2^bits − 1: compressed-tensors' q + 2^(bits−1).
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// Words of 32 bits that hold `count` codes.
constexpr std::int64_t packed_words(std::int64_t count, int bits) {
  return (count * bits + 31) / 32;
}

// A little-endian bitstream along each row: element k occupies bits [b·k, b·k + b), the last word
// is filled up with zeros. code [out, in], words [out, ⌈in·bits/32⌉] (weight_packed).   bits 2, 3,
// 4 or 8.
void pack_rows(Matrix<const std::uint8_t> code, int bits, Matrix<std::uint32_t> words,
               Stream& stream);
void unpack_rows(Matrix<const std::uint32_t> words, int bits, Matrix<std::uint8_t> code,
                 Stream& stream);

// The same stream down each column.   zero [out, groups], words [⌈out·bits/32⌉, groups]
// (weight_zero_point).
void pack_columns(Matrix<const std::uint8_t> zero, int bits, Matrix<std::uint32_t> words,
                  Stream& stream);
void unpack_columns(Matrix<const std::uint32_t> words, int bits, Matrix<std::uint8_t> zero,
                    Stream& stream);

// AWQ GEMM, 4 bits: nibble i of words[k, c] is code[8c + awq_order[i], k].   code [out, in], words
// [in, out/8] (qweight), and with groups in the place of in: zero [out, groups], words [groups,
// out/8] (qzeros). 8 divides out.
inline constexpr int awq_order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
void pack_awq(Matrix<const std::uint8_t> code, Matrix<std::uint32_t> words, Stream& stream);
void unpack_awq(Matrix<const std::uint32_t> words, Matrix<std::uint8_t> code, Stream& stream);

namespace cuda {
decltype(qpipe::pack_rows) pack_rows;
decltype(qpipe::unpack_rows) unpack_rows;
decltype(qpipe::pack_columns) pack_columns;
decltype(qpipe::unpack_columns) unpack_columns;
decltype(qpipe::pack_awq) pack_awq;
decltype(qpipe::unpack_awq) unpack_awq;
}  // namespace cuda

}  // namespace qpipe
