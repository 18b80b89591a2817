// What the tests of factor() share: orders of the columns, large problems, LAPACK's answer in
// single precision, and the residual.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/kernels/backends.h"

extern "C" void spotrf_(const char* uplo, const int* n, float* a, const int* lda,
                        int* info);  // LAPACK

namespace qpipe {

inline std::vector<std::int32_t> identity(std::int64_t d) {
  std::vector<std::int32_t> perm(static_cast<std::size_t>(d));
  std::iota(perm.begin(), perm.end(), 0);
  return perm;
}

inline std::vector<std::int32_t> shuffled(std::int64_t d) {
  auto perm = identity(d);
  std::shuffle(perm.begin(), perm.end(), std::mt19937(static_cast<unsigned>(d)));
  return perm;
}

// A symmetric positive definite matrix of any size, quickly: S (D + U Uᵀ) S with D diagonal, 16
// columns in U, and columns of unequal size by S. Its factor is dense. mean: of the entries of U.
// Where it is large all variables are positively correlated, as activations with a common part are.
inline std::vector<float> low_rank_hessian(std::int64_t d, unsigned seed, float mean = 0.0f) {
  constexpr std::int64_t rank = 16;
  auto u = random_normal(d * rank, seed, 0.5f);
  for (float& value : u) value += mean;
  std::vector<float> h(static_cast<std::size_t>(d * d));
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j < d; ++j) {
      double sum = i == j ? 0.5 + 0.1 * static_cast<double>(i % 5) : 0.0;
      for (std::int64_t k = 0; k < rank; ++k)
        sum += static_cast<double>(u[i * rank + k]) * u[j * rank + k];
      h[i * d + j] = static_cast<float>(sum * (1.0 + static_cast<double>(i % 7)) *
                                        (1.0 + static_cast<double>(j % 7)));
    }
  return h;
}

struct FactorResult {
  bool success;
  std::vector<float> n;
  std::vector<float> pivot;
};

// LAPACK's float32 Cholesky, as N and pivots.
inline FactorResult single_precision_factor(const std::vector<float>& h, std::int64_t d) {
  std::vector<float> a(h.rbegin(), h.rend());  // both orders reversed
  const int order = static_cast<int>(d);
  int info = -1;
  spotrf_("U", &order, a.data(), &order, &info);  // column-major upper is row-major lower
  FactorResult result{info == 0, std::vector<float>(h.size(), 0.0f),
                      std::vector<float>(static_cast<std::size_t>(d))};
  for (std::int64_t i = 0; i < d; ++i) {
    result.pivot[i] = a[(d - 1 - i) * (d + 1)];
    result.n[i * d + i] = 1.0f;
    for (std::int64_t j = i + 1; j < d; ++j)
      result.n[i * d + j] = a[(d - 1 - i) * d + (d - 1 - j)] / a[(d - 1 - j) * (d + 1)];
  }
  return result;
}

// ‖(A − M Mᵀ) v‖ / ‖A v‖ for a vector of random signs, which estimates ‖A − M Mᵀ‖ / ‖A‖ in the
// Frobenius norm.
inline double residual(const std::vector<float>& a, const FactorResult& factor) {
  const auto d = static_cast<std::int64_t>(factor.pivot.size());
  std::mt19937 generator(3);
  std::vector<double> v(static_cast<std::size_t>(d));
  for (double& value : v) value = generator() % 2 == 0 ? 1.0 : -1.0;
  std::vector<double> z(v.size(), 0.0);  // diag(pivot)² Nᵀ v
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = i; j < d; ++j) z[j] += static_cast<double>(factor.n[i * d + j]) * v[i];
  for (std::int64_t j = 0; j < d; ++j)
    z[j] *= static_cast<double>(factor.pivot[j]) * factor.pivot[j];
  double error = 0.0;
  double norm = 0.0;
  for (std::int64_t i = 0; i < d; ++i) {
    double want = 0.0;
    double got = 0.0;
    for (std::int64_t j = 0; j < d; ++j) want += static_cast<double>(a[i * d + j]) * v[j];
    for (std::int64_t j = i; j < d; ++j) got += static_cast<double>(factor.n[i * d + j]) * z[j];
    error += (want - got) * (want - got);
    norm += want * want;
  }
  return std::sqrt(error / norm);
}

}  // namespace qpipe
