#include "kernels/pack.h"

#include <cmath>

#include "kernels/grid.h"
#include "kernels/pack_fields.h"
#include "kernels/simd_half.h"

namespace qpipe {

namespace {

void check_weights(std::int64_t out, std::int64_t in, int bits, std::int64_t word_rows,
                   std::int64_t word_cols) {
  check_bits(bits);
  require(in % 32 == 0, "pack_weights: the number of inputs must be a multiple of 32");
  require(word_rows == in * bits / 32 && word_cols == out,
          "pack_weights: words must be [in * bits / 32, out]");
}

void check_zeros(std::int64_t out, std::int64_t groups, int bits, std::int64_t word_rows,
                 std::int64_t word_cols) {
  check_bits(bits);
  require(out % 32 == 0, "pack_zeros: the number of outputs must be a multiple of 32");
  require(word_rows == groups && word_cols == out * bits / 32,
          "pack_zeros: words must be [groups, out * bits / 32]");
}

template <int bits>
void pack_weights_of(Matrix<const std::uint8_t> code, Matrix<std::uint32_t> words) {
  using P = Period<bits>;
#pragma omp parallel for schedule(static)
  for (std::int64_t period = 0; period < code.cols / P::fields; ++period)
    for (std::int64_t n = 0; n < code.rows; ++n) {
      const std::uint8_t* from = code.row(n) + period * P::fields;
      std::uint32_t word[P::words];
      P::join([&](int k) { return std::uint32_t{from[k]}; }, word);
      for (int i = 0; i < P::words; ++i) words(period * P::words + i, n) = word[i];
    }
}

template <int bits>
void unpack_weights_of(Matrix<const std::uint32_t> words, Matrix<std::uint8_t> code) {
  using P = Period<bits>;
#pragma omp parallel for schedule(static)
  for (std::int64_t period = 0; period < code.cols / P::fields; ++period)
    for (std::int64_t n = 0; n < code.rows; ++n) {
      std::uint8_t* to = code.row(n) + period * P::fields;
      std::uint32_t word[P::words];
      for (int i = 0; i < P::words; ++i) word[i] = words(period * P::words + i, n);
      P::split(word, [&](int k, std::uint32_t field) { to[k] = static_cast<std::uint8_t>(field); });
    }
}

template <int bits>
void pack_zeros_of(Matrix<const std::uint8_t> zero, int offset, Matrix<std::uint32_t> words) {
  using P = Period<bits>;
  constexpr std::uint32_t mask = (1u << bits) - 1u;
  for (std::int64_t g = 0; g < zero.cols; ++g)
    for (std::int64_t period = 0; period < zero.rows / P::fields; ++period) {
      std::uint32_t word[P::words];
      P::join(
          [&](int k) {
            return (zero(period * P::fields + k, g) + static_cast<std::uint32_t>(offset)) & mask;
          },
          word);
      for (int i = 0; i < P::words; ++i) words(g, period * P::words + i) = word[i];
    }
}

template <int bits>
void unpack_zeros_of(Matrix<const std::uint32_t> words, int offset, Matrix<std::uint8_t> zero) {
  using P = Period<bits>;
  constexpr std::uint32_t mask = (1u << bits) - 1u;
  for (std::int64_t g = 0; g < zero.cols; ++g)
    for (std::int64_t period = 0; period < zero.rows / P::fields; ++period) {
      std::uint32_t word[P::words];
      for (int i = 0; i < P::words; ++i) word[i] = words(g, period * P::words + i);
      P::split(word, [&](int k, std::uint32_t field) {
        zero(period * P::fields + k, g) =
            static_cast<std::uint8_t>((field - static_cast<std::uint32_t>(offset)) & mask);
      });
    }
}

}  // namespace

void pack_weights(Matrix<const std::uint8_t> code, int bits, Matrix<std::uint32_t> words,
                  Stream& stream) {
  check_weights(code.rows, code.cols, bits, words.rows, words.cols);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::pack_weights(code, bits, words, stream);
  switch (bits) {
    case 2: return pack_weights_of<2>(code, words);
    case 3: return pack_weights_of<3>(code, words);
    case 4: return pack_weights_of<4>(code, words);
    default: return pack_weights_of<8>(code, words);
  }
}

void unpack_weights(Matrix<const std::uint32_t> words, int bits, Matrix<std::uint8_t> code,
                    Stream& stream) {
  check_weights(code.rows, code.cols, bits, words.rows, words.cols);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::unpack_weights(words, bits, code, stream);
  switch (bits) {
    case 2: return unpack_weights_of<2>(words, code);
    case 3: return unpack_weights_of<3>(words, code);
    case 4: return unpack_weights_of<4>(words, code);
    default: return unpack_weights_of<8>(words, code);
  }
}

void pack_zeros(Matrix<const std::uint8_t> zero, int bits, int offset, Matrix<std::uint32_t> words,
                Stream& stream) {
  check_zeros(zero.rows, zero.cols, bits, words.rows, words.cols);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::pack_zeros(zero, bits, offset, words, stream);
  switch (bits) {
    case 2: return pack_zeros_of<2>(zero, offset, words);
    case 3: return pack_zeros_of<3>(zero, offset, words);
    case 4: return pack_zeros_of<4>(zero, offset, words);
    default: return pack_zeros_of<8>(zero, offset, words);
  }
}

void unpack_zeros(Matrix<const std::uint32_t> words, int bits, int offset,
                  Matrix<std::uint8_t> zero, Stream& stream) {
  check_zeros(zero.rows, zero.cols, bits, words.rows, words.cols);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::unpack_zeros(words, bits, offset, zero, stream);
  switch (bits) {
    case 2: return unpack_zeros_of<2>(words, offset, zero);
    case 3: return unpack_zeros_of<3>(words, offset, zero);
    case 4: return unpack_zeros_of<4>(words, offset, zero);
    default: return unpack_zeros_of<8>(words, offset, zero);
  }
}

void pack_scales(Matrix<const float> scale, Matrix<const std::int32_t> place, Matrix<f16> half,
                 Matrix<std::int32_t> inexact, Stream& stream) {
  require(place.cols == scale.cols && half.rows == scale.cols && half.cols == scale.rows,
          "pack_scales: half must be [groups, out] and place [1, groups]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::pack_scales(scale, place, half, inexact, stream);
  bool exact = true;
  for (std::int64_t n = 0; n < scale.rows; ++n)
    for (std::int64_t g = 0; g < scale.cols; ++g) {
      const float value = scale(n, g);
      const f16 stored = simd_to_f16(value);
      exact &= std::isfinite(value) && simd_to_float(stored) == value;
      half(place(0, g), n) = stored;
    }
  if (!exact) inexact(0, 0) = 1;
}

}  // namespace qpipe
