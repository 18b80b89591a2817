#include "kernels/factor.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>

#include "kernels/cholesky_cuda.h"

extern "C" void dpotrf_(const char* uplo, const int* n, double* a, const int* lda, int* info);

namespace qpipe {

namespace {

constexpr std::int64_t tile = 256;

// a ← L, a = L Lᵀ, lower triangle of a row-major matrix, right-looking on fixed tiles: bits do not
// depend on the number of threads.
bool cholesky(Matrix<double> a) {
  const std::int64_t d = a.rows;
  const int lda = static_cast<int>(a.stride);
  for (std::int64_t k0 = 0; k0 < d; k0 += tile) {
    const std::int64_t k1 = std::min(d, k0 + tile);
    const int width = static_cast<int>(k1 - k0);
    double* diagonal = a.row(k0) + k0;
    int info = 0;
    dpotrf_("U", &width, diagonal, &lda, &info);  // column-major upper is row-major lower
    if (info != 0) return false;
    for (std::int64_t k = k0; k < k1; ++k)
      if (!(a(k, k) > 0.0) || !std::isfinite(a(k, k))) return false;

    const std::int64_t below = (d - k1 + tile - 1) / tile;
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t t = 0; t < below; ++t) {
      const std::int64_t i0 = k1 + t * tile;
      cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit,
                  static_cast<int>(std::min(tile, d - i0)), width, 1.0, diagonal, lda,
                  a.row(i0) + k0, lda);
    }
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t pair = 0; pair < below * below; ++pair) {
      const std::int64_t i0 = k1 + pair / below * tile;
      const std::int64_t j0 = k1 + pair % below * tile;
      const int height = static_cast<int>(std::min(tile, d - i0));
      if (i0 == j0)
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, height, width, -1.0, a.row(i0) + k0,
                    lda, 1.0, a.row(i0) + i0, lda);
      else if (i0 > j0)
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, height,
                    static_cast<int>(std::min(tile, d - j0)), width, -1.0, a.row(i0) + k0, lda,
                    a.row(j0) + k0, lda, 1.0, a.row(i0) + j0, lda);
    }
  }
  return true;
}

}  // namespace

std::int64_t factor_workspace_bytes(std::int64_t d, int ranks) {
  constexpr std::int64_t vectors = sizeof(float) + sizeof(double);  // scales and the diagonal
  return cuda::cholesky_workspace_bytes(d, ranks) + d * vectors +
         static_cast<std::int64_t>(sizeof(int));
}

bool factor(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<float> n,
            Matrix<float> pivot, const FactorTeam& team, Stream& stream) {
  const std::int64_t d = h.rows;
  require(h.cols == d && n.rows == d && n.cols == d, "factor: h and n must be [d, d]");
  require(perm.cols == d && pivot.cols == d, "factor: perm and pivot must be [1, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::factor(h, perm, damp, n, pivot, team, stream);
  Array<double> memory(d, d, stream);
  const Matrix<double> a = memory;
  // Row i of the reversed matrix is row d−1−i of the permuted one.
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < d; ++i) {
    const float* row = h.row(perm(0, d - 1 - i));
    for (std::int64_t j = 0; j < i; ++j) a(i, j) = row[perm(0, d - 1 - j)];
    const float diagonal = row[perm(0, d - 1 - i)];
    a(i, i) = (diagonal == 0.0f ? 1.0 : static_cast<double>(diagonal)) + damp;
  }
  if (!cholesky(a)) return false;
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < d; ++i) {
    const double* row = a.row(d - 1 - i);
    float* out = n.row(i);
    std::fill(out, out + i, 0.0f);
    out[i] = 1.0f;
    for (std::int64_t j = i + 1; j < d; ++j)
      out[j] = static_cast<float>(row[d - 1 - j] / a(d - 1 - j, d - 1 - j));
    pivot(0, i) = static_cast<float>(row[d - 1 - i]);
  }
  return true;
}

}  // namespace qpipe
