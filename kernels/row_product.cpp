#include "kernels/row_product.h"

#include <cblas.h>

#include <algorithm>
#include <vector>

#include "kernels/split_multiply.h"

namespace qpipe {

namespace {

// BLAS may take another way for another number of rows: it always gets so many.
constexpr std::int64_t rows_at_once = product_row_block;

}  // namespace

void multiply_rows(Matrix<const float> a, Matrix<const float> b, RightFactor kind, Matrix<float> c,
                   Stream& stream) {
  const bool triangular = kind != RightFactor::plain;
  require(a.cols == b.rows && c.rows == a.rows && c.cols == b.cols,
          "multiply_rows: c must be [rows of a, columns of b]");
  require(!triangular || b.rows == b.cols, "multiply_rows: a triangular b must be [d, d]");
  require(c.contiguous() || c.rows <= 1, "multiply_rows: c must have no gaps");
  if (c.size() == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::multiply_rows(a, b, kind, c, stream);
#pragma omp parallel
  {
    std::vector<float> left(static_cast<std::size_t>(rows_at_once * a.cols));
    std::vector<float> product(static_cast<std::size_t>(rows_at_once * c.cols));
#pragma omp for schedule(dynamic)
    for (std::int64_t begin = 0; begin < c.rows; begin += rows_at_once) {
      const std::int64_t count = std::min(rows_at_once, c.rows - begin);
      std::ranges::fill(left, 0.0f);
      for (std::int64_t r = 0; r < count; ++r)
        std::copy_n(a.row(begin + r), a.cols, left.data() + r * a.cols);
      if (triangular) {
        cblas_strmm(CblasRowMajor, CblasRight, CblasUpper,
                    kind == RightFactor::upper ? CblasNoTrans : CblasTrans, CblasNonUnit,
                    static_cast<int>(rows_at_once), static_cast<int>(c.cols), 1.0f, b.data,
                    static_cast<int>(b.stride), left.data(), static_cast<int>(a.cols));
        std::swap(left, product);
      } else {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<int>(rows_at_once),
                    static_cast<int>(c.cols), static_cast<int>(a.cols), 1.0f, left.data(),
                    static_cast<int>(a.cols), b.data, static_cast<int>(b.stride), 0.0f,
                    product.data(), static_cast<int>(c.cols));
      }
      for (std::int64_t r = 0; r < count; ++r)
        std::copy_n(product.data() + r * c.cols, c.cols, c.row(begin + r));
    }
  }
}

std::int64_t multiply_rows_workspace_bytes(Backend backend, std::int64_t rows, std::int64_t depth,
                                           std::int64_t cols, RightFactor kind) {
  if (backend == Backend::cpu) return 0;
  const std::int64_t columns = std::min(cuda::product_columns, cols);
  const std::int64_t turned = kind == RightFactor::upper_transposed ? depth * columns : 0;
  return cuda::SplitMultiply::workspace_bytes(rows, depth, columns) +
         static_cast<std::int64_t>(sizeof(float)) * turned;
}

}  // namespace qpipe
