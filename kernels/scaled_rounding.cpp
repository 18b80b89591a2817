#include "kernels/scaled_rounding.h"

#include <vector>

#include "kernels/grid.h"
#include "kernels/weights.h"

namespace qpipe {

namespace {

template <class T, class Out>
void round_rows(Matrix<const T> w, Matrix<const float> s, std::int64_t group_size,
                const GridOptions& options, Matrix<Out> out) {
  const float max_code = largest_code(options.bits);
#pragma omp parallel
  {
    std::vector<float> scaled(static_cast<std::size_t>(group_size));
#pragma omp for schedule(static)
    for (std::int64_t r = 0; r < w.rows; ++r)
      for (std::int64_t begin = 0; begin < w.cols; begin += group_size) {
        for (std::int64_t i = 0; i < group_size; ++i)
          scaled[static_cast<std::size_t>(i)] = to_float(w(r, begin + i)) * s(0, begin + i);
        const Grid grid = find_grid(scaled.data(), group_size, options);
        for (std::int64_t i = 0; i < group_size; ++i) {
          const float code =
              nearest_code(scaled[static_cast<std::size_t>(i)], grid.scale, grid.zero, max_code);
          store_rounded(grid.scale * (code - grid.zero) / s(0, begin + i), out(r, begin + i));
        }
      }
  }
}

}  // namespace

void scaled_rounding(ConstTensor w, Matrix<const float> s, std::int64_t group_size,
                     const GridOptions& grid, Tensor out, Stream& stream) {
  check_bits(grid.bits);
  require_weights(w.dtype, "scaled_rounding: w must be f32, f16 or bf16");
  require(grid.mse_norm == 0.0f, "scaled_rounding: no search of the grid here");
  require(group_size > 0 && w.cols % group_size == 0,
          "scaled_rounding: group_size must divide the number of columns");
  require(s.rows == 1 && s.cols == w.cols, "scaled_rounding: s must be [1, d]");
  require(out.rows == w.rows && out.cols == w.cols,
          "scaled_rounding: out must have the shape of w");
  require(out.dtype == DType::f32 || out.dtype == DType::bf16,
          "scaled_rounding: out must be f32 or bf16");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::scaled_rounding(w, s, group_size, grid, out, stream);
  with_type(w, [&](auto weights) {
    if (out.dtype == DType::f32)
      round_rows(weights, s, group_size, grid, out.as<float>());
    else
      round_rows(weights, s, group_size, grid, out.as<bf16>());
  });
}

}  // namespace qpipe
