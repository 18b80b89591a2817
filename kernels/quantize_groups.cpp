#include "kernels/quantize_groups.h"

#include <algorithm>
#include <cmath>

#include "kernels/grid.h"

namespace qpipe {

namespace {

QPIPE_SIMD_CLONES void round_row(const float* w, const float* scale, const std::uint8_t* zero,
                                 const std::int32_t* group_of, std::int64_t cols, float max_code,
                                 std::uint8_t* code) {
  for (std::int64_t c = 0; c < cols; ++c) {
    const std::int32_t group = group_of[c];
    code[c] = static_cast<std::uint8_t>(
        nearest_code(w[c], scale[group], static_cast<float>(zero[group]), max_code));
  }
}

void store(float value, float& out) { out = value; }
void store(float value, f16& out) { out = to_f16(value); }
void store(float value, bf16& out) { out = to_bf16(value); }

template <class T>
void dequantize_as(Matrix<const std::uint8_t> code, Matrix<const float> scale,
                   Matrix<const std::uint8_t> zero, Matrix<const std::int32_t> group_of,
                   Matrix<T> w) {
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < code.rows; ++r)
    for (std::int64_t c = 0; c < code.cols; ++c) {
      const std::int32_t group = group_of(0, c);
      store(scale(r, group) * static_cast<float>(code(r, c) - zero(r, group)), w(r, c));
    }
}

void check_grids(Matrix<const float> scale, Matrix<const std::uint8_t> zero,
                 Matrix<const std::int32_t> group_of, std::int64_t rows, std::int64_t cols) {
  require(scale.rows == rows && zero.rows == rows && scale.cols == zero.cols,
          "quantize_groups: scale and zero must be [rows, groups]");
  require(group_of.cols == cols, "quantize_groups: group_of must be [1, cols]");
}

}  // namespace

void find_grids(Matrix<const float> w, std::int64_t group_size, const GridOptions& grid,
                Matrix<float> scale, Matrix<std::uint8_t> zero, Stream& stream) {
  find_weighted_grids(w, group_size, grid, {}, scale, zero, stream);
}

void find_weighted_grids(Matrix<const float> w, std::int64_t group_size, const GridOptions& grid,
                         Matrix<const float> weight, Matrix<float> scale, Matrix<std::uint8_t> zero,
                         Stream& stream) {
  check_bits(grid.bits);
  require(group_size > 0 && w.cols % group_size == 0,
          "find_grids: group_size must divide the number of columns");
  const std::int64_t groups = w.cols / group_size;
  require(
      scale.rows == w.rows && zero.rows == w.rows && scale.cols == groups && zero.cols == groups,
      "find_grids: scale and zero must be [rows, groups]");
  require(weight.empty() || weight.cols == w.cols, "find_grids: weight must be [1, cols]");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::find_weighted_grids(w, group_size, grid, weight, scale, zero, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < w.rows; ++r)
    for (std::int64_t g = 0; g < groups; ++g) {
      const Grid found = find_grid(w.row(r) + g * group_size, group_size, grid,
                                   weight.empty() ? nullptr : weight.data + g * group_size);
      scale(r, g) = found.scale;
      zero(r, g) = static_cast<std::uint8_t>(found.zero);
    }
}

void round_to_grid(Matrix<const float> w, Matrix<const float> scale,
                   Matrix<const std::uint8_t> zero, Matrix<const std::int32_t> group_of, int bits,
                   Matrix<std::uint8_t> code, Stream& stream) {
  check_bits(bits);
  check_grids(scale, zero, group_of, w.rows, w.cols);
  require(code.rows == w.rows && code.cols == w.cols,
          "round_to_grid: code must have the shape of w");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::round_to_grid(w, scale, zero, group_of, bits, code, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < w.rows; ++r)
    round_row(w.row(r), scale.row(r), zero.row(r), group_of.data, w.cols, largest_code(bits),
              code.row(r));
}

void dequantize(Matrix<const std::uint8_t> code, Matrix<const float> scale,
                Matrix<const std::uint8_t> zero, Matrix<const std::int32_t> group_of, Tensor w,
                Stream& stream) {
  check_grids(scale, zero, group_of, code.rows, code.cols);
  require(w.rows == code.rows && w.cols == code.cols, "dequantize: w must have the shape of code");
  require(w.dtype == DType::f32 || w.dtype == DType::f16 || w.dtype == DType::bf16,
          "dequantize: w must be f32, f16 or bf16");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::dequantize(code, scale, zero, group_of, w, stream);
  switch (w.dtype) {
    case DType::f16: return dequantize_as(code, scale, zero, group_of, w.as<f16>());
    case DType::bf16: return dequantize_as(code, scale, zero, group_of, w.as<bf16>());
    default: return dequantize_as(code, scale, zero, group_of, w.as<float>());
  }
}

void inspect_grids(Matrix<const float> scale, Matrix<const std::uint8_t> zero,
                   Matrix<std::int32_t> found, Stream& stream) {
  require(scale.rows == zero.rows && scale.cols == zero.cols && scale.contiguous() &&
              zero.contiguous() && found.cols == 2,
          "inspect_grids: scale and zero must be [rows, groups] without gaps, and found [1, 2]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::inspect_grids(scale, zero, found, stream);
  if (!std::all_of(scale.data, scale.data + scale.size(), [](float s) { return std::isfinite(s); }))
    found(0, 0) = 1;
  if (std::find(zero.data, zero.data + zero.size(), 0) != zero.data + zero.size()) found(0, 1) = 1;
}

}  // namespace qpipe
