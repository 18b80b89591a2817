#include "kernels/triangular_inverse.h"

#include <cblas.h>

#include <algorithm>

#include "kernels/split_multiply.h"

namespace qpipe {

namespace {

// BLAS may take another way for another number of rows: it always gets as many, where there are.
constexpr std::int64_t rows_at_once = 32;

}  // namespace

void invert_unit_upper(Matrix<const float> n, Matrix<float> inverse, Stream& stream) {
  const std::int64_t d = n.cols;
  require(n.rows == d && inverse.rows == d && inverse.cols == d,
          "invert_unit_upper: n and its inverse must be [d, d]");
  require(inverse.contiguous(), "invert_unit_upper: the inverse must have no gaps");
  if (d == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::invert_unit_upper(n, inverse, stream);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t begin = 0; begin < d; begin += rows_at_once) {  // rows of the identity, x N = I
    const std::int64_t count = std::min(rows_at_once, d - begin);
    std::fill_n(inverse.row(begin), count * d, 0.0f);
    for (std::int64_t r = 0; r < count; ++r) inverse(begin + r, begin + r) = 1.0f;
    cblas_strsm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasUnit,
                static_cast<int>(count), static_cast<int>(d - begin), 1.0f, n.row(begin) + begin,
                static_cast<int>(n.stride), inverse.row(begin) + begin, static_cast<int>(d));
  }
}

std::int64_t inverse_workspace_bytes(Backend backend, std::int64_t d) {
  if (backend == Backend::cpu) return 0;
  std::int64_t half = cuda::inverse_block;  // of the last step's blocks
  while (2 * half < d) half *= 2;
  if (half >= d) return 0;
  return cuda::SplitMultiply::workspace_bytes(half, half, half) +
         static_cast<std::int64_t>(sizeof(float)) * half * half;
}

}  // namespace qpipe
