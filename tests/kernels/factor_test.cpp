#include "kernels/factor.h"

#include <omp.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/kernels/factor_checks.h"
#include "tests/reference/gptq.h"

namespace qpipe {
namespace {

// A symmetric positive definite matrix of correlated, unequal variables, as float32.
std::vector<float> correlated_hessian(std::int64_t d, unsigned seed) {
  const std::int64_t samples = 2 * d + 3;
  auto x = random_normal(samples * d, seed);
  for (std::int64_t t = 0; t < samples; ++t)
    for (std::int64_t c = 1; c < d; ++c)
      x[t * d + c] =
          0.6f * x[t * d + c - 1] + x[t * d + c] * (1.0f + 0.1f * static_cast<float>(c % 7));
  std::vector<float> h(static_cast<std::size_t>(d * d));
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0.0;
      for (std::int64_t t = 0; t < samples; ++t)
        sum += static_cast<double>(x[t * d + i]) * x[t * d + j];
      h[i * d + j] = h[j * d + i] = static_cast<float>(sum / static_cast<double>(samples));
    }
  return h;
}

double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  return std::sqrt(error / norm);
}

class FactorTest : public BackendTest {
 protected:
  FactorResult run(const std::vector<float>& h, const std::vector<std::int32_t>& perm,
                   double damp) {
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
  for (const std::int64_t d :
       {std::int64_t{1}, std::int64_t{2}, std::int64_t{31}, std::int64_t{32}, std::int64_t{128},
        std::int64_t{129}, std::int64_t{257}, std::int64_t{600}}) {
    auto h = correlated_hessian(d, 5);
    if (d > 10)
      for (std::int64_t i = 0; i < d; ++i) h[i * d + 7] = h[7 * d + i] = 0.0f;  // a dead column
    const auto perm = shuffled(d);
    const double damp = 0.01;
    const FactorResult result = run(h, perm, damp);
    ASSERT_TRUE(result.success);

    std::vector<double> a(static_cast<std::size_t>(d * d));
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j) {
        const double value = h[perm[i] * d + perm[j]];
        a[i * d + j] = i == j ? (value == 0.0 ? 1.0 : value) + damp : value;
      }
    // CPU: N and the pivots are rounded once each. CUDA: backward error of Cholesky in float32,
    // γ_{d+1} · √(a_ii a_jj), and the same.
    const double roundoff = 0x1p-24 * (stream.on_cuda() ? static_cast<double>(d) + 6.0 : 6.0);
    for (std::int64_t i = 0; i < d; ++i) {
      for (std::int64_t j = 0; j < i; ++j) ASSERT_EQ(result.n[i * d + j], 0.0f);
      ASSERT_EQ(result.n[i * d + i], 1.0f);
      for (std::int64_t j = i; j < d; ++j) {
        double product = 0.0;
        for (std::int64_t k = j; k < d; ++k)
          product += static_cast<double>(result.n[i * d + k]) * result.n[j * d + k] *
                     result.pivot[k] * result.pivot[k];
        ASSERT_NEAR(product, a[i * d + j], roundoff * std::sqrt(a[i * d + i] * a[j * d + j]))
            << d << ": " << i << ", " << j;
      }
    }
  }
}

TEST_P(FactorTest, EqualsTheInverseOfTheTextbookFactor) {
  // H⁻¹ = Uᵀ U with U upper, M = U⁻¹: pivot_k = 1 / U_kk, and row k of −U/U_kk's strict part is
  // what N compensates: M U = I.
  const std::int64_t d = 96;
  const auto h = correlated_hessian(d, 6);
  const auto perm = identity(d);
  const FactorResult result = run(h, perm, 0.0);
  ASSERT_TRUE(result.success);
  const auto l = reference::cholesky({h.begin(), h.end()}, d);
  ASSERT_TRUE(l);
  // (M Mᵀ)⁻¹ h = I column by column, through M x = b and Mᵀ y = x.
  const auto m = [&](std::int64_t i, std::int64_t j) {
    return static_cast<double>(result.n[i * d + j]) * result.pivot[j];
  };
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
    for (std::int64_t i = 0; i < d; ++i)
      ASSERT_NEAR(b[i], i == c ? 1.0 : 0.0, stream.on_cuda() ? 1e-3 : 1e-4);
  }
}

TEST_P(FactorTest, RefusesIndefiniteAndNonFinite) {
  const std::int64_t d = 300;
  const auto perm = identity(d);
  const auto good = correlated_hessian(d, 7);
  ASSERT_TRUE(run(good, perm, 0.0).success);

  auto singular = good;  // equal columns up to a sign that makes it indefinite
  singular[280 * d + 10] = singular[10 * d + 280] =
      2.0f * std::sqrt(good[280 * d + 280] * good[10 * d + 10]);
  EXPECT_FALSE(run(singular, perm, 0.0).success);
  EXPECT_TRUE(run(singular, perm, 100.0).success);
  EXPECT_FALSE(run(good, perm, -1e3).success);

  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const auto& [i, j] :
         {std::pair<std::int64_t, std::int64_t>{0, 0}, {299, 299}, {17, 290}, {270, 260}}) {
      auto h = good;
      h[i * d + j] = h[j * d + i] = bad;
      EXPECT_FALSE(run(h, perm, 0.01).success) << bad << " at " << i << ", " << j;
    }
}

TEST_P(FactorTest, BitsDoNotDependOnTheNumberOfThreads) {
  const std::int64_t d = 700;
  const auto h = correlated_hessian(d, 8);
  const auto perm = identity(d);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const FactorResult one = run(h, perm, 0.01);
  omp_set_num_threads(5);
  const FactorResult five = run(h, perm, 0.01);
  omp_set_num_threads(threads);
  EXPECT_EQ(one.n, five.n);
  EXPECT_EQ(one.pivot, five.pivot);
}

// Sizes past every tile, ragged and not, in float32 and on tensor cores: as exact as LAPACK in
// float32, whose errors grow alike. The CPU's answer is float64's.
TEST_P(FactorTest, LargeMatricesAreAsExactAsSinglePrecision) {
  const std::vector<std::int64_t> sizes = stream.on_cuda()
                                              ? std::vector<std::int64_t>{576, 1500, 4096, 4099}
                                              : std::vector<std::int64_t>{1500};
  for (const std::int64_t d : sizes)
    for (const float mean : {0.0f, 0.5f}) {
      const std::string what = std::to_string(d) + ", mean " + std::to_string(mean);
      const auto h = low_rank_hessian(d, 9, mean);
      const FactorResult result = run(h, identity(d), 0.0);
      const FactorResult single = single_precision_factor(h, d);
      ASSERT_TRUE(result.success && single.success) << what;
      EXPECT_LE(residual(h, result), 1.5 * residual(h, single)) << what;

      Stream cpu(Backend::cpu, 0);
      Array<float> n(d, d, cpu);
      Array<float> pivot(1, d, cpu);
      auto perm = identity(d);
      ASSERT_TRUE(factor(Matrix<const float>(h.data(), d, d),
                         Matrix<const std::int32_t>(perm.data(), 1, d), 0.0, n, pivot, cpu));
      const std::vector<float> exact(n.view.data, n.view.data + d * d);
      EXPECT_LE(relative_error(result.n, exact), 2.0 * relative_error(single.n, exact)) << what;
      EXPECT_LE(relative_error(result.pivot, {pivot.view.data, pivot.view.data + d}),
                2.0 * relative_error(single.pivot, {pivot.view.data, pivot.view.data + d}))
          << what;
    }
}

// An entry (k, k) smaller by more than the pivot's square makes pivot k the first that fails; k
// counts from the end, where elimination begins.
TEST_P(FactorTest, RefusesAFaultAnywhereAmongTheBlocks) {
  const std::int64_t d = 1300;
  const auto good = low_rank_hessian(d, 10);
  const FactorResult result = run(good, identity(d), 0.0);
  ASSERT_TRUE(result.success);
  for (const std::int64_t eliminated : {0, 31, 32, 127, 128, 511, 512, 1023, 1024, 1298, 1299}) {
    const std::int64_t k = d - 1 - eliminated;
    auto h = good;
    h[k * d + k] -= 1.5f * result.pivot[k] * result.pivot[k];
    EXPECT_FALSE(run(h, identity(d), 0.0).success) << eliminated;
  }
  auto singular = good;
  singular[0] -= 0.999f * result.pivot[0] * result.pivot[0];
  const FactorResult nearly = run(singular, identity(d), 0.0);
  ASSERT_TRUE(nearly.success);
  EXPECT_NEAR(nearly.pivot[0], std::sqrt(0.001f) * result.pivot[0],
              0.02f * result.pivot[0] * std::sqrt(0.001f));

  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e38f})
    for (const auto& [i, j] :
         {std::pair<std::int64_t, std::int64_t>{0, 0}, {3, 1290}, {200, 700}, {640, 650}, {0, 1}}) {
      auto h = good;
      h[i * d + j] = h[j * d + i] = bad;
      if (i == j && bad == 1e38f) continue;  // positive definite
      EXPECT_FALSE(run(h, identity(d), 0.01).success) << bad << " at " << i << ", " << j;
    }
}

TEST_P(FactorTest, LargeMatricesGiveTheSameBitsEachTime) {
  const std::int64_t d = stream.on_cuda() ? 2500 : 600;
  const auto h = low_rank_hessian(d, 11);
  const FactorResult first = run(h, shuffled(d), 0.01);
  ASSERT_TRUE(first.success);
  for (int i = 0; i < 3; ++i) {
    const FactorResult again = run(h, shuffled(d), 0.01);
    EXPECT_EQ(first.n, again.n);
    EXPECT_EQ(first.pivot, again.pivot);
  }
}

TEST_P(FactorTest, ExtremeScalesKeepTheFactor) {
  // N of S A S is S N S⁻¹, and its pivots those of A times S: exactly, when S holds powers of two.
  const std::int64_t d = 700;
  const auto h = low_rank_hessian(d, 12);
  const FactorResult plain = run(h, identity(d), 0.0);
  ASSERT_TRUE(plain.success);
  const auto unequal = [](std::int64_t i) { return static_cast<int>(i * 37 % 61) - 30; };
  const auto tiny = [](std::int64_t) { return -56; };
  const auto huge = [](std::int64_t) { return 56; };
  for (const auto& exponent :
       {std::function<int(std::int64_t)>(unequal), std::function<int(std::int64_t)>(tiny),
        std::function<int(std::int64_t)>(huge)}) {
    auto scaled = h;
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j)
        scaled[i * d + j] = std::ldexp(h[i * d + j], exponent(i) + exponent(j));
    const FactorResult wide = run(scaled, identity(d), 0.0);
    ASSERT_TRUE(wide.success);
    for (std::int64_t i = 0; i < d; ++i) {
      ASSERT_EQ(wide.pivot[i], std::ldexp(plain.pivot[i], exponent(i)));
      for (std::int64_t j = i; j < d; ++j)
        ASSERT_EQ(wide.n[i * d + j], std::ldexp(plain.n[i * d + j], exponent(i) - exponent(j)))
            << i << ", " << j;
    }
  }
}

TEST_P(FactorTest, WorkspaceIsBounded) {
  for (const std::int64_t d : {1, 129, 513, 2500, 4096, 4097}) {
    const auto h = low_rank_hessian(d, 13);
    Stream fresh(GetParam(), 0);
    const Array<float> h_device(d, d, fresh);
    copy_to_device(h_device.view.data, h.data(), h.size() * sizeof(float), fresh);
    const auto perm = identity(d);
    const Array<std::int32_t> perm_device(1, d, fresh);
    copy_to_device(perm_device.view.data, perm.data(), perm.size() * sizeof(std::int32_t), fresh);
    const Array<float> n(d, d, fresh);
    const Array<float> pivot(1, d, fresh);
    const std::size_t before = fresh.bytes_in_use();
    ASSERT_TRUE(factor(h_device, perm_device, 0.01, n, pivot, fresh));
    EXPECT_EQ(fresh.bytes_in_use(), before);
    if (stream.on_cuda()) {
      EXPECT_LE(static_cast<std::int64_t>(fresh.bytes_peak() - before), factor_workspace_bytes(d))
          << d;
    }
  }
  // O(d), not O(d²).
  EXPECT_LE(factor_workspace_bytes(28672), std::int64_t{28672} * 28672 * 4 / 10);
  EXPECT_LE(factor_workspace_bytes(2 * 28672), 2 * factor_workspace_bytes(28672) + 1024 * 1024 * 8);
  // In a team a panel more, which goes to the others.
  EXPECT_EQ(factor_workspace_bytes(28672, 4) - factor_workspace_bytes(28672),
            28672 * 512 * 4 + (28672 - 512) * 8);
  EXPECT_EQ(factor_workspace_bytes(8192, 4), factor_workspace_bytes(8192));
}

INSTANTIATE_TEST_SUITE_P(Backends, FactorTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
