#include "kernels/triangular_solve.h"

#include <cblas.h>

#include <algorithm>
#include <vector>

#include "kernels/split_multiply.h"

namespace qpipe {

namespace {

// BLAS may take another way for another number of rows: it always gets so many.
constexpr std::int64_t rows_at_once = 32;

}  // namespace

void solve_unit_upper(Matrix<const float> n, Side side, Matrix<float> x, Stream& stream) {
  require(n.rows == n.cols && x.cols == n.cols, "solve_unit_upper: n must be [d, d], x [rows, d]");
  if (x.size() == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::solve_unit_upper(n, side, x, stream);
  const auto d = static_cast<std::size_t>(n.cols);
#pragma omp parallel
  {
    std::vector<float> chunk(static_cast<std::size_t>(rows_at_once) * d);
#pragma omp for schedule(dynamic)
    for (std::int64_t begin = 0; begin < x.rows; begin += rows_at_once) {
      const std::int64_t count = std::min(rows_at_once, x.rows - begin);
      std::ranges::fill(chunk, 0.0f);
      for (std::int64_t r = 0; r < count; ++r)
        std::copy_n(x.row(begin + r), d, chunk.data() + static_cast<std::size_t>(r) * d);
      cblas_strsm(CblasRowMajor, CblasRight, CblasUpper,
                  side == Side::inverse ? CblasNoTrans : CblasTrans, CblasUnit,
                  static_cast<int>(rows_at_once), static_cast<int>(d), 1.0f, n.data,
                  static_cast<int>(n.stride), chunk.data(), static_cast<int>(d));
      for (std::int64_t r = 0; r < count; ++r)
        std::copy_n(chunk.data() + static_cast<std::size_t>(r) * d, d, x.row(begin + r));
    }
  }
}

std::int64_t solve_workspace_bytes(Backend backend, std::int64_t rows, std::int64_t d) {
  if (backend == Backend::cpu) return 0;
  using cuda::solved_columns;
  return cuda::SplitMultiply::workspace_bytes(rows, solved_columns,
                                              std::max<std::int64_t>(1, d - solved_columns)) +
         static_cast<std::int64_t>(sizeof(float)) * solved_columns * (rows + d);
}

}  // namespace qpipe
