#include "kernels/pack_rows.h"

#include <algorithm>

#include "kernels/grid.h"

namespace qpipe {

namespace {

// 32 codes are `bits` whole words. Reads and writes every `step`-th element; beyond count and
// word_count nothing is touched.
void pack_32(const std::uint8_t* code, std::int64_t code_step, std::int64_t count, int bits,
             std::uint32_t* words, std::int64_t word_step, std::int64_t word_count) {
  std::uint64_t pending = 0;
  int filled = 0;
  std::int64_t word = 0;
  for (std::int64_t i = 0; i < 32 && word < word_count; ++i) {
    const std::uint64_t field = i < count ? code[i * code_step] & ((1u << bits) - 1u) : 0u;
    pending |= field << filled;
    filled += bits;
    if (filled >= 32) {
      words[word++ * word_step] = static_cast<std::uint32_t>(pending);
      pending >>= 32;
      filled -= 32;
    }
  }
}

void unpack_32(const std::uint32_t* words, std::int64_t word_step, std::int64_t word_count,
               int bits, std::uint8_t* code, std::int64_t code_step, std::int64_t count) {
  std::uint64_t pending = 0;
  int filled = 0;
  std::int64_t word = 0;
  for (std::int64_t i = 0; i < std::min<std::int64_t>(count, 32); ++i) {
    if (filled < bits && word < word_count) {
      pending |= std::uint64_t{words[word++ * word_step]} << filled;
      filled += 32;
    }
    code[i * code_step] = static_cast<std::uint8_t>(pending & ((1u << bits) - 1u));
    pending >>= bits;
    filled -= bits;
  }
}

void check_stream(std::int64_t words, std::int64_t count, int bits) {
  check_bits(bits);
  require(words == packed_words(count, bits),
          "pack_rows: words must hold ceil(count * bits / 32) words along the packed dimension");
}

}  // namespace

void pack_rows(Matrix<const std::uint8_t> code, int bits, Matrix<std::uint32_t> words,
               Stream& stream) {
  check_stream(words.cols, code.cols, bits);
  require(words.rows == code.rows, "pack_rows: words must have the rows of code");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::pack_rows(code, bits, words, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < code.rows; ++r)
    for (std::int64_t k = 0, w = 0; k < code.cols; k += 32, w += bits)
      pack_32(code.row(r) + k, 1, code.cols - k, bits, words.row(r) + w, 1, words.cols - w);
}

void unpack_rows(Matrix<const std::uint32_t> words, int bits, Matrix<std::uint8_t> code,
                 Stream& stream) {
  check_stream(words.cols, code.cols, bits);
  require(words.rows == code.rows, "unpack_rows: words must have the rows of code");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::unpack_rows(words, bits, code, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < code.rows; ++r)
    for (std::int64_t k = 0, w = 0; k < code.cols; k += 32, w += bits)
      unpack_32(words.row(r) + w, 1, words.cols - w, bits, code.row(r) + k, 1, code.cols - k);
}

void pack_columns(Matrix<const std::uint8_t> zero, int bits, Matrix<std::uint32_t> words,
                  Stream& stream) {
  check_stream(words.rows, zero.rows, bits);
  require(words.cols == zero.cols, "pack_columns: words must have the columns of zero");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::pack_columns(zero, bits, words, stream);
  for (std::int64_t n = 0, w = 0; n < zero.rows; n += 32, w += bits)
    for (std::int64_t g = 0; g < zero.cols; ++g)
      pack_32(zero.row(n) + g, zero.stride, zero.rows - n, bits, words.row(w) + g, words.stride,
              words.rows - w);
}

void unpack_columns(Matrix<const std::uint32_t> words, int bits, Matrix<std::uint8_t> zero,
                    Stream& stream) {
  check_stream(words.rows, zero.rows, bits);
  require(words.cols == zero.cols, "unpack_columns: words must have the columns of zero");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::unpack_columns(words, bits, zero, stream);
  for (std::int64_t n = 0, w = 0; n < zero.rows; n += 32, w += bits)
    for (std::int64_t g = 0; g < zero.cols; ++g)
      unpack_32(words.row(w) + g, words.stride, words.rows - w, bits, zero.row(n) + g, zero.stride,
                zero.rows - n);
}

void pack_awq(Matrix<const std::uint8_t> code, Matrix<std::uint32_t> words, Stream& stream) {
  require(code.rows % 8 == 0 && words.rows == code.cols && words.cols == code.rows / 8,
          "pack_awq: words must be [in, out/8] of code [out, in]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::pack_awq(code, words, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t k = 0; k < words.rows; ++k)
    for (std::int64_t c = 0; c < words.cols; ++c) {
      std::uint32_t word = 0;
      for (int i = 0; i < 8; ++i) word |= (code(8 * c + awq_order[i], k) & 15u) << (4 * i);
      words(k, c) = word;
    }
}

void unpack_awq(Matrix<const std::uint32_t> words, Matrix<std::uint8_t> code, Stream& stream) {
  require(code.rows % 8 == 0 && words.rows == code.cols && words.cols == code.rows / 8,
          "unpack_awq: words must be [in, out/8] of code [out, in]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::unpack_awq(words, code, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t c = 0; c < words.cols; ++c)
    for (std::int64_t k = 0; k < words.rows; ++k)
      for (int i = 0; i < 8; ++i)
        code(8 * c + awq_order[i], k) = static_cast<std::uint8_t>(words(k, c) >> (4 * i) & 15u);
}

}  // namespace qpipe
