#include "kernels/float8.h"

#include <cmath>

#include "kernels/weights.h"

namespace qpipe {

std::uint8_t to_e4m3(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t sign = (bits >> 24) & 0x80u;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= 0x43e00000u) return static_cast<std::uint8_t>(sign | 0x7eu);  // 448 and more
  if (magnitude < 0x3c800000u) {  // below 2^−6: multiples of 2^−9
    const float units = std::nearbyint(std::bit_cast<float>(magnitude) * 512.0f);
    return static_cast<std::uint8_t>(sign | static_cast<std::uint32_t>(units));
  }
  const std::uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<std::uint8_t>(sign | ((rounded - (120u << 23)) >> 20));
}

float float8_zero_scale(DType scale_dtype) {
  switch (scale_dtype) {
    case DType::f32: return 0x1p-23f;
    case DType::f16: return 0x1p-10f;
    case DType::bf16: return 0x1p-7f;
    default: throw std::invalid_argument("float8: a scale is f32, f16 or bf16");
  }
}

namespace {

float scale_of(std::uint32_t largest, DType scale_dtype) {
  float scale = std::bit_cast<float>(largest) / e4m3_max;
  if (scale_dtype == DType::f16) scale = to_float(to_f16(scale));
  if (scale_dtype == DType::bf16) scale = to_float(to_bf16(scale));
  return scale == 0.0f ? float8_zero_scale(scale_dtype) : scale;
}

template <class T>
void encode_run(const T* w, std::int64_t count, float scale, std::uint8_t* code) {
  for (std::int64_t i = 0; i < count; ++i) code[i] = to_e4m3(to_float(w[i]) / scale);
}

}  // namespace

void quantize_float8_rows(ConstTensor w, DType scale_dtype, Matrix<std::uint8_t> code,
                          Matrix<float> scale, Stream& stream) {
  require_weights(w.dtype, "quantize_float8_rows: w must be f32, f16 or bf16");
  float8_zero_scale(scale_dtype);
  require(code.rows == w.rows && code.cols == w.cols,
          "quantize_float8_rows: code must have the shape of w");
  require(scale.rows == w.rows && scale.cols == 1, "quantize_float8_rows: scale must be [rows, 1]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::quantize_float8_rows(w, scale_dtype, code, scale, stream);
  with_type(w, [&](auto x) {
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < x.rows; ++r) {
      scale(r, 0) = scale_of(largest_magnitude(x.row(r), x.cols), scale_dtype);
      encode_run(x.row(r), x.cols, scale(r, 0), code.row(r));
    }
  });
}

void quantize_float8_blocks(ConstTensor w, Matrix<std::uint8_t> code, Matrix<float> scale,
                            Stream& stream) {
  require_weights(w.dtype, "quantize_float8_blocks: w must be f32, f16 or bf16");
  require(code.rows == w.rows && code.cols == w.cols,
          "quantize_float8_blocks: code must have the shape of w");
  require(scale.rows == (w.rows + float8_block - 1) / float8_block &&
              scale.cols == (w.cols + float8_block - 1) / float8_block,
          "quantize_float8_blocks: scale must be [ceil(rows/128), ceil(cols/128)]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::quantize_float8_blocks(w, code, scale, stream);
  with_type(w, [&](auto x) {
#pragma omp parallel for collapse(2) schedule(static)
    for (std::int64_t i = 0; i < scale.rows; ++i)
      for (std::int64_t j = 0; j < scale.cols; ++j) {
        const std::int64_t last_row = std::min((i + 1) * float8_block, x.rows);
        const std::int64_t begin = j * float8_block;
        const std::int64_t count = std::min(float8_block, x.cols - begin);
        std::uint32_t largest = 0;
        for (std::int64_t r = i * float8_block; r < last_row; ++r)
          largest = std::max(largest, largest_magnitude(x.row(r) + begin, count));
        scale(i, j) = scale_of(largest, DType::f32);
        for (std::int64_t r = i * float8_block; r < last_row; ++r)
          encode_run(x.row(r) + begin, count, scale(i, j), code.row(r) + begin);
      }
  });
}

void dequantize_float8(Matrix<const std::uint8_t> code, Matrix<const float> scale,
                       std::int64_t block_rows, std::int64_t block_cols, Tensor w, Stream& stream) {
  require_weights(w.dtype, "dequantize_float8: w must be f32, f16 or bf16");
  require(w.rows == code.rows && w.cols == code.cols,
          "dequantize_float8: w must have the shape of code");
  if (code.size() == 0) return;
  require(block_rows > 0 && block_cols > 0 &&
              scale.rows == (code.rows + block_rows - 1) / block_rows &&
              scale.cols == (code.cols + block_cols - 1) / block_cols,
          "dequantize_float8: scale must be [ceil(rows/block_rows), ceil(cols/block_cols)]");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::dequantize_float8(code, scale, block_rows, block_cols, w, stream);
  with_type(w, [&](auto x) {
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < x.rows; ++r)
      for (std::int64_t c = 0; c < x.cols; ++c)
        store_rounded(e4m3_to_float(code(r, c)) * scale(r / block_rows, c / block_cols), x(r, c));
  });
}

}  // namespace qpipe
