#include "kernels/factor.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/kernels/backends.h"
#include "tests/reference/gptq.h"

namespace qpipe {
namespace {

// A symmetric positive definite matrix of correlated, unequal variables, as float32.
std::vector<float> correlated_hessian(std::int64_t d, unsigned seed) {
  const std::int64_t samples = 2 * d + 3;
  auto x = random_normal(samples * d, seed);
  for (std::int64_t t = 0; t < samples; ++t)
    for (std::int64_t c = 1; c < d; ++c) x[t * d + c] = 0.6f * x[t * d + c - 1] + x[t * d + c] * (1.0f + 0.1f * static_cast<float>(c % 7));
  std::vector<float> h(static_cast<std::size_t>(d * d));
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0.0;
      for (std::int64_t t = 0; t < samples; ++t) sum += static_cast<double>(x[t * d + i]) * x[t * d + j];
      h[i * d + j] = h[j * d + i] = static_cast<float>(sum / static_cast<double>(samples));
    }
  return h;
}

class FactorTest : public BackendTest {
 protected:
  struct Result {
    bool success;
    std::vector<float> n;
    std::vector<float> pivot;
  };
  Result run(const std::vector<float>& h, const std::vector<std::int32_t>& perm, double damp) {
    const auto d = static_cast<std::int64_t>(perm.size());
    const Array<float> h_device = upload_as(h, d, d);
    const Array<std::int32_t> perm_device = upload_as(perm, 1, d);
    const Array<float> n(d, d, stream);
    const Array<float> pivot(1, d, stream);
    const bool success = factor(h_device, perm_device, damp, n, pivot, stream);
    return {success, download_as(n.view), download_as(pivot.view)};
  }
};

TEST_P(FactorTest, ProductGivesBackTheDampedPermutedMatrix) {
  for (const std::int64_t d : {std::int64_t{1}, std::int64_t{2}, std::int64_t{31}, std::int64_t{257}, std::int64_t{600}}) {
    auto h = correlated_hessian(d, 5);
    if (d > 10)
      for (std::int64_t i = 0; i < d; ++i) h[i * d + 7] = h[7 * d + i] = 0.0f;  // a dead column
    std::vector<std::int32_t> perm(static_cast<std::size_t>(d));
    std::iota(perm.begin(), perm.end(), 0);
    std::shuffle(perm.begin(), perm.end(), std::mt19937(static_cast<unsigned>(d)));
    const double damp = 0.01;
    const Result result = run(h, perm, damp);
    ASSERT_TRUE(result.success);

    std::vector<double> a(static_cast<std::size_t>(d * d));
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j) {
        const double value = h[perm[i] * d + perm[j]];
        a[i * d + j] = i == j ? (value == 0.0 ? 1.0 : value) + damp : value;
      }
    // CPU: N and the pivots are rounded once each. CUDA: backward error of Cholesky in float32, γ_{d+1} · √(a_ii a_jj), and the same.
    const double roundoff = 0x1p-24 * (stream.on_cuda() ? static_cast<double>(d) + 6.0 : 6.0);
    for (std::int64_t i = 0; i < d; ++i) {
      for (std::int64_t j = 0; j < i; ++j) ASSERT_EQ(result.n[i * d + j], 0.0f);
      ASSERT_EQ(result.n[i * d + i], 1.0f);
      for (std::int64_t j = i; j < d; ++j) {
        double product = 0.0;
        for (std::int64_t k = j; k < d; ++k)
          product += static_cast<double>(result.n[i * d + k]) * result.n[j * d + k] * result.pivot[k] * result.pivot[k];
        ASSERT_NEAR(product, a[i * d + j], roundoff * std::sqrt(a[i * d + i] * a[j * d + j])) << d << ": " << i << ", " << j;
      }
    }
  }
}

TEST_P(FactorTest, EqualsTheInverseOfTheTextbookFactor) {
  // H⁻¹ = Uᵀ U with U upper, M = U⁻¹: pivot_k = 1 / U_kk, and row k of −U/U_kk's strict part is what N compensates: M U = I.
  const std::int64_t d = 96;
  const auto h = correlated_hessian(d, 6);
  std::vector<std::int32_t> perm(static_cast<std::size_t>(d));
  std::iota(perm.begin(), perm.end(), 0);
  const Result result = run(h, perm, 0.0);
  ASSERT_TRUE(result.success);
  const auto l = reference::cholesky({h.begin(), h.end()}, d);
  ASSERT_TRUE(l);
  // (M Mᵀ)⁻¹ h = I column by column, through M x = b and Mᵀ y = x.
  const auto m = [&](std::int64_t i, std::int64_t j) { return static_cast<double>(result.n[i * d + j]) * result.pivot[j]; };
  for (std::int64_t c = 0; c < d; ++c) {
    std::vector<double> b(static_cast<std::size_t>(d));
    for (std::int64_t i = 0; i < d; ++i) b[i] = h[i * d + c];
    for (std::int64_t i = d - 1; i >= 0; --i) {
      for (std::int64_t k = i + 1; k < d; ++k) b[i] -= m(i, k) * b[k];
      b[i] /= m(i, i);
    }
    for (std::int64_t i = 0; i < d; ++i) {
      for (std::int64_t k = 0; k < i; ++k) b[i] -= m(k, i) * b[k];
      b[i] /= m(i, i);
    }
    for (std::int64_t i = 0; i < d; ++i) ASSERT_NEAR(b[i], i == c ? 1.0 : 0.0, stream.on_cuda() ? 1e-3 : 1e-4);
  }
}

TEST_P(FactorTest, RefusesIndefiniteAndNonFinite) {
  const std::int64_t d = 300;
  std::vector<std::int32_t> perm(static_cast<std::size_t>(d));
  std::iota(perm.begin(), perm.end(), 0);
  const auto good = correlated_hessian(d, 7);
  ASSERT_TRUE(run(good, perm, 0.0).success);

  auto singular = good;  // equal columns up to a sign that makes it indefinite
  singular[280 * d + 10] = singular[10 * d + 280] = 2.0f * std::sqrt(good[280 * d + 280] * good[10 * d + 10]);
  EXPECT_FALSE(run(singular, perm, 0.0).success);
  EXPECT_TRUE(run(singular, perm, 100.0).success);
  EXPECT_FALSE(run(good, perm, -1e3).success);

  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const auto& [i, j] : {std::pair<std::int64_t, std::int64_t>{0, 0}, {299, 299}, {17, 290}, {270, 260}}) {
      auto h = good;
      h[i * d + j] = h[j * d + i] = bad;
      EXPECT_FALSE(run(h, perm, 0.01).success) << bad << " at " << i << ", " << j;
    }
}

TEST_P(FactorTest, BitsDoNotDependOnTheNumberOfThreads) {
  const std::int64_t d = 700;
  const auto h = correlated_hessian(d, 8);
  std::vector<std::int32_t> perm(static_cast<std::size_t>(d));
  std::iota(perm.begin(), perm.end(), 0);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Result one = run(h, perm, 0.01);
  omp_set_num_threads(5);
  const Result five = run(h, perm, 0.01);
  omp_set_num_threads(threads);
  EXPECT_EQ(one.n, five.n);
  EXPECT_EQ(one.pivot, five.pivot);
}

INSTANTIATE_TEST_SUITE_P(Backends, FactorTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
