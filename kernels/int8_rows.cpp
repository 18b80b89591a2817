#include "kernels/int8_rows.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/simd.h"
#include "kernels/simd_half.h"

namespace qpipe {

namespace {

#define QPIPE_ROUND_ROW(T)                                                         \
  QPIPE_SIMD_CLONES void round_row(const T* from, std::int64_t count, float* to) { \
    _Pragma("omp simd") for (std::int64_t i = 0; i < count; ++i) to[i] =           \
        simd_round_to_half(simd_to_float(from[i]));                                \
  }
QPIPE_ROUND_ROW(f16)
QPIPE_ROUND_ROW(bf16)
QPIPE_ROUND_ROW(float)
#undef QPIPE_ROUND_ROW

// max |x| by its bits: NaN is above infinity.
QPIPE_SIMD_CLONES float largest_in_row(const float* x, std::int64_t count) {
  std::uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < count; ++i)
    largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
  return std::bit_cast<float>(largest);
}

QPIPE_SIMD_CLONES void code_row(const float* x, std::int64_t count, float scale,
                                std::int8_t* code) {
  constexpr float shift = 0x1.8p23f;  // leaves no room for a fraction: rounds half to even
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i)
    code[i] = static_cast<std::int8_t>(static_cast<std::int32_t>((x[i] * scale + shift) - shift));
}

template <class T>
void quantize_from(Matrix<const T> w, Matrix<float> scb, Matrix<std::int8_t> code) {
#pragma omp parallel
  {
    std::vector<float> row(static_cast<std::size_t>(w.cols));
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < w.rows; ++n) {
      round_row(w.row(n), w.cols, row.data());
      const float largest = largest_in_row(row.data(), w.cols);
      scb.data[n] = largest;
      if (largest > 0.0f && largest < std::numeric_limits<float>::infinity())
        code_row(row.data(), w.cols, 127.0f * (1.0f / largest), code.row(n));
      else
        std::fill_n(code.row(n), w.cols, std::int8_t{0});
    }
  }
}

void store(float value, float& out) { out = value; }
void store(float value, f16& out) { out = to_f16(value); }
void store(float value, bf16& out) { out = to_bf16(value); }

template <class T>
void dequantize_to(Matrix<const std::int8_t> code, Matrix<const float> scb, Matrix<T> w) {
#pragma omp parallel for schedule(static)
  for (std::int64_t n = 0; n < w.rows; ++n)
    for (std::int64_t k = 0; k < w.cols; ++k)
      store((static_cast<float>(code(n, k)) * scb.data[n]) * (1.0f / 127.0f), w(n, k));
}

template <class Void>
void check_rows(const AnyMatrix<Void>& w, Matrix<const std::int8_t> code, Matrix<const float> scb) {
  require(w.dtype == DType::f32 || w.dtype == DType::f16 || w.dtype == DType::bf16,
          "int8_rows: w must be f32, f16 or bf16");
  require(code.rows == w.rows && code.cols == w.cols && scb.size() == w.rows,
          "int8_rows: code must be [N, K] as w, scb [1, N]");
}

}  // namespace

void quantize_int8_rows(ConstTensor w, Matrix<float> scb, Matrix<std::int8_t> code,
                        Stream& stream) {
  check_rows(w, code, scb);
  if (w.rows == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::quantize_int8_rows(w, scb, code, stream);
  switch (w.dtype) {
    case DType::f16: return quantize_from(w.as<const f16>(), scb, code);
    case DType::bf16: return quantize_from(w.as<const bf16>(), scb, code);
    default: return quantize_from(w.as<const float>(), scb, code);
  }
}

void dequantize_int8_rows(Matrix<const std::int8_t> code, Matrix<const float> scb, Tensor w,
                          Stream& stream) {
  check_rows(w, code, scb);
  if (w.size() == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::dequantize_int8_rows(code, scb, w, stream);
  switch (w.dtype) {
    case DType::f16: return dequantize_to(code, scb, w.as<f16>());
    case DType::bf16: return dequantize_to(code, scb, w.as<bf16>());
    default: return dequantize_to(code, scb, w.as<float>());
  }
}

}  // namespace qpipe
