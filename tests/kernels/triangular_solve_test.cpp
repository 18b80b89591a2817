#include "kernels/triangular_solve.h"

#include <cmath>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class TriangularSolveTest : public BackendTest {
 protected:
  // Ones on the diagonal, zeros below, beside it what a Hessian's factor has: less than 1, less
  // with the distance.
  static std::vector<float> unit_upper(std::int64_t d) {
    auto n = random_normal(d * d, 5);
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j)
        n[i * d + j] = j < i    ? 0.0f
                       : i == j ? 1.0f
                                : 0.3f * n[i * d + j] / (1.0f + std::sqrt(float(j - i)));
    return n;
  }

  std::vector<float> solve(const std::vector<float>& n, const std::vector<float>& x, Side side,
                           std::int64_t rows, std::int64_t d) {
    const Array<float> on_device = upload_as(x, rows, d);
    solve_unit_upper(upload_as(n, d, d), side, on_device, stream);
    return download_as(on_device.view);
  }
};

TEST_P(TriangularSolveTest, IsTheInverse) {
  for (const auto& [rows, d] : {std::pair<std::int64_t, std::int64_t>{1, 1},
                                {3, 7},
                                {5, 128},
                                {70, 129},
                                {130, 300},
                                {64, 512}}) {
    const auto n = unit_upper(d);
    const auto want = random_normal(rows * d, 6);
    for (const Side side : {Side::inverse, Side::inverse_of_transpose}) {
      std::vector<float> product(want.size());  // want · N, or want · Nᵀ
      double largest = 0.0;
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t k = 0; k < d; ++k) {
          double sum = 0.0;
          for (std::int64_t j = 0; j < d; ++j)
            sum += static_cast<double>(want[r * d + j]) *
                   (side == Side::inverse ? n[j * d + k] : n[k * d + j]);
          product[r * d + k] = static_cast<float>(sum);
          largest = std::max(largest, std::fabs(sum));
        }
      const auto got = solve(n, product, side, rows, d);
      for (std::size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(got[i], want[i], 2e-5 * largest) << rows << " x " << d << ": " << i;
    }
  }
}

TEST_P(TriangularSolveTest, ARowDoesNotDependOnTheOthers) {
  const std::int64_t rows = 150;
  const std::int64_t d = 260;
  const auto n = unit_upper(d);
  const auto x = random_normal(rows * d, 7);
  for (const Side side : {Side::inverse, Side::inverse_of_transpose}) {
    const auto all = solve(n, x, side, rows, d);
    for (const auto& [begin, count] :
         {std::pair<std::int64_t, std::int64_t>{0, 1}, {17, 90}, {64, 86}}) {
      const std::vector<float> part(x.begin() + begin * d, x.begin() + (begin + count) * d);
      const std::vector<float> want(all.begin() + begin * d, all.begin() + (begin + count) * d);
      EXPECT_EQ(solve(n, part, side, count, d), want) << begin;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, TriangularSolveTest, testing::ValuesIn(backends()),
                         backend_name);

}  // namespace
}  // namespace qpipe
