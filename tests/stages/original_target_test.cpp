#include "stages/original_target.h"

#include <cmath>
#include <numeric>

#include "kernels/factor.h"
#include "stages/transfer.h"
#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

using Doubles = std::vector<double>;

// Inputs x̃ of correlated columns, one of them always 0, and the original model's x.
struct Inputs {
  std::int64_t tokens = 600;
  std::int64_t d = 140;
  std::int64_t dead = 7;
  std::vector<float> x_tilde, x;
  std::vector<float> drift;  // B of x = x̃ + x̃ Bᵀ + noise, [d, d]

  explicit Inputs(float noise) {
    x_tilde = random_normal(tokens * d, 1);
    const auto shared = random_normal(tokens, 2);
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t i = 0; i < d; ++i)
        x_tilde[t * d + i] = i == dead ? 0.0f : x_tilde[t * d + i] + 0.7f * shared[t];
    drift = random_normal(d * d, 3);
    for (float& b : drift) b *= 0.02f;
    const auto error = random_normal(tokens * d, 4);
    x = x_tilde;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t i = 0; i < d; ++i) {
        double sum = noise * error[t * d + i];
        for (std::int64_t j = 0; j < d; ++j)
          sum += static_cast<double>(drift[i * d + j]) * x_tilde[t * d + j];
        x[t * d + i] += static_cast<float>(sum);
      }
  }
  // (1/T) Σ (x − x̃) x̃ᵀ, or with `moved` = false of x̃ x̃ᵀ, over some tokens.
  std::vector<float> moment(bool moved, std::int64_t begin, std::int64_t end) const {
    Doubles sum(static_cast<std::size_t>(d * d));
    for (std::int64_t t = begin; t < end; ++t)
      for (std::int64_t i = 0; i < d; ++i) {
        const double left = moved ? static_cast<double>(x[t * d + i]) - x_tilde[t * d + i]
                                  : static_cast<double>(x_tilde[t * d + i]);
        for (std::int64_t j = 0; j < d; ++j) sum[i * d + j] += left * x_tilde[t * d + j];
      }
    std::vector<float> result(sum.size());
    for (std::size_t i = 0; i < sum.size(); ++i)
      result[i] = static_cast<float>(sum[i] / static_cast<double>(tokens));
    return result;
  }
};

class OriginalTargetTest : public BackendTest {
 protected:
  struct Prepared {
    std::vector<std::int32_t> order;
    std::vector<float> h;
    double damp = 0.0;
    Array<std::int32_t> perm;
    Array<std::uint8_t> dead;
    Array<float> n, pivot;
    CrossMoments moments;
    SolvedOrder solved() const { return {n, pivot, perm, dead}; }
  };

  Prepared prepare(const Inputs& in) {
    Prepared p;
    p.order.resize(static_cast<std::size_t>(in.d));
    for (std::int64_t k = 0; k < in.d; ++k)
      p.order[k] = static_cast<std::int32_t>(k * 37 % in.d);  // 37 and 140 have no common factor
    p.h = in.moment(false, 0, in.tokens);
    double trace = 0.0;
    for (std::int64_t i = 0; i < in.d; ++i) trace += p.h[i * in.d + i];
    p.damp = 0.01 * trace / static_cast<double>(in.d);
    p.perm = upload_as(p.order, 1, in.d);
    std::vector<std::uint8_t> dead(static_cast<std::size_t>(in.d));
    dead[in.dead] = 1;
    p.dead = upload_as(dead, 1, in.d);
    p.n = Array<float>(in.d, in.d, stream);
    p.pivot = Array<float>(1, in.d, stream);
    EXPECT_TRUE(factor(upload_as(p.h, in.d, in.d), p.perm, p.damp, p.n, p.pivot, stream));
    p.moments = {{upload_as(in.moment(true, 0, in.tokens / 2), in.d, in.d),
                  upload_as(in.moment(true, in.tokens / 2, in.tokens), in.d, in.d)}};
    return p;
  }

  // W moved, and the mean of α.
  std::pair<std::vector<float>, double> moved(const Inputs& in, const std::vector<float>& w,
                                              std::int64_t rows) {
    Prepared p = prepare(in);
    const Array<float> weight = upload_as(w, rows, in.d);
    const ConstTensor view(weight.view.data, DType::f32, rows, in.d);
    const OriginalTarget target = original_target(p.moments, {view}, p.solved(), stream);
    const Array<float> c = sum_of_halves(std::move(p.moments), stream);
    move_to_target(target, c, p.solved(), weight, stream);
    return {download_as(weight.view), target.agreement};
  }
};

// The same in double precision: H = M Mᵀ, row by row from the last; A = W C M⁻ᵀ of each half.
TEST_P(OriginalTargetTest, IsWhatItsDefinitionSays) {
  const Inputs in(0.3f);
  const std::int64_t d = in.d;
  const std::int64_t rows = 45;
  const auto w = random_normal(rows * d, 5);
  const Prepared p = prepare(in);
  Doubles m(static_cast<std::size_t>(d * d));
  for (std::int64_t j = d - 1; j >= 0; --j)
    for (std::int64_t i = j; i >= 0; --i) {
      const std::int64_t row = p.order[i];
      const std::int64_t column = p.order[j];
      double sum = p.h[row * d + column];
      if (i == j) sum += (sum == 0.0 ? 1.0 : 0.0) + p.damp;
      for (std::int64_t k = j + 1; k < d; ++k) sum -= m[i * d + k] * m[j * d + k];
      m[i * d + j] = i == j ? std::sqrt(sum) : sum / m[j * d + j];
    }
  std::array<Doubles, 2> halves;
  for (std::size_t half = 0; half < 2; ++half) {
    const auto c = download_as(p.moments.halves[half].view);
    Doubles& a = halves[half];
    a.resize(static_cast<std::size_t>(rows * d));
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t k = d - 1; k >= 0; --k) {  // x Mᵀ = w C
        double sum = 0.0;
        if (p.order[k] != in.dead)
          for (std::int64_t i = 0; i < d; ++i)
            sum += static_cast<double>(w[r * d + i]) * c[i * d + p.order[k]];
        for (std::int64_t j = k + 1; j < d; ++j) sum -= a[r * d + j] * m[k * d + j];
        a[r * d + k] = sum / m[k * d + k];
      }
  }
  Doubles alpha(static_cast<std::size_t>(d));
  for (std::int64_t k = 0; k < d; ++k) {
    double noise = 0.0;
    double power = 0.0;
    for (std::int64_t r = 0; r < rows; ++r) {
      noise += std::pow(halves[0][r * d + k] - halves[1][r * d + k], 2);
      power += std::pow(halves[0][r * d + k] + halves[1][r * d + k], 2);
    }
    alpha[k] = power > 0.0 ? std::max(0.0, 1.0 - noise / power) : 0.0;
  }
  const auto [got, agreement] = moved(in, w, rows);
  EXPECT_NEAR(agreement, std::accumulate(alpha.begin(), alpha.end(), 0.0) / static_cast<double>(d),
              1e-4);
  EXPECT_GT(agreement, 0.1);
  EXPECT_LT(agreement, 0.9);
  double error = 0.0;
  double norm = 0.0;
  for (std::int64_t r = 0; r < rows; ++r) {
    Doubles shift(static_cast<std::size_t>(d));
    for (std::int64_t k = 0; k < d; ++k) {  // x M = a
      double sum = alpha[k] * (halves[0][r * d + k] + halves[1][r * d + k]);
      for (std::int64_t j = 0; j < k; ++j) sum -= shift[j] * m[j * d + k];
      shift[k] = sum / m[k * d + k];
    }
    for (std::int64_t k = 0; k < d; ++k) {
      const std::int64_t i = r * d + p.order[k];
      error += std::pow(static_cast<double>(got[i]) - w[i] - shift[k], 2);
      norm += shift[k] * shift[k];
    }
  }
  EXPECT_LT(std::sqrt(error / norm), 1e-3);
}

// A drift that is a function of x̃, without noise: the moved weights make of x̃ what W makes of x.
TEST_P(OriginalTargetTest, MakesUpForALinearDrift) {
  const Inputs in(0.0f);
  const std::int64_t rows = 60;
  const auto w = random_normal(rows * in.d, 6);
  const auto [got, agreement] = moved(in, w, rows);
  EXPECT_GT(agreement, 0.6);
  double before = 0.0;
  double after = 0.0;
  for (std::int64_t t = 0; t < in.tokens; ++t)
    for (std::int64_t r = 0; r < rows; ++r) {
      double wanted = 0.0;
      double plain = 0.0;
      double now = 0.0;
      for (std::int64_t i = 0; i < in.d; ++i) {
        wanted += static_cast<double>(w[r * in.d + i]) * in.x[t * in.d + i];
        plain += static_cast<double>(w[r * in.d + i]) * in.x_tilde[t * in.d + i];
        now += static_cast<double>(got[r * in.d + i]) * in.x_tilde[t * in.d + i];
      }
      before += (wanted - plain) * (wanted - plain);
      after += (wanted - now) * (wanted - now);
    }
  EXPECT_LT(after, 0.15 * before);
}

// Without any drift that two halves agree on, weights stay nearly as they are.
TEST_P(OriginalTargetTest, NoiseMovesNothing) {
  Inputs in(0.0f);
  const auto noise = random_normal(in.tokens * in.d, 8);
  for (std::size_t i = 0; i < in.x.size(); ++i) in.x[i] = in.x_tilde[i] + 0.3f * noise[i];
  const std::int64_t rows = 200;
  const auto w = random_normal(rows * in.d, 9);
  const auto [got, agreement] = moved(in, w, rows);
  EXPECT_LT(agreement, 0.15);
}

INSTANTIATE_TEST_SUITE_P(Backends, OriginalTargetTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
