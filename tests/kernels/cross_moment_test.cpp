#include "kernels/cross_moment.h"

#include <cmath>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class CrossMomentTest : public BackendTest {
 protected:
  Array<std::int32_t> exponents_of(const std::vector<float>& x, std::int64_t tokens,
                                   std::int64_t d) {
    std::vector<float> largest(static_cast<std::size_t>(d));
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t i = 0; i < d; ++i)
        largest[i] = std::max(largest[i], std::fabs(x[t * d + i]));
    std::vector<std::int32_t> exponent(static_cast<std::size_t>(d));
    hessian_exponents({largest.data(), 1, d}, {exponent.data(), 1, d});
    return upload_as(exponent, 1, d);
  }
};

TEST_P(CrossMomentTest, DifferenceIsRoundedOnce) {
  const auto x = round_to_compute(random_normal(37 * 19, 1));
  const auto y = round_to_compute(random_normal(37 * 19, 2));
  const TensorArray result(stream.compute_dtype(), 37, 19, stream);
  subtract(upload(x, 37, 19), upload(y, 37, 19), result, stream);
  const auto got = download(result.view);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float want = x[i] - y[i];
    EXPECT_EQ(got[i], stream.on_cuda() ? to_float(to_bf16(want)) : want) << i;
  }
}

// Of the exact sum Σ δ x̃: float32 sums of blocks, then a rounding to float32. Wide ranges of sizes
// between columns, ranges of columns, blocks in any order: one sum.
TEST_P(CrossMomentTest, IsTheSumInAnyOrderAndByRanges) {
  const std::int64_t panel = hessian_panel(stream.backend());
  const std::int64_t tokens = 300;
  const std::int64_t d = panel + 70;
  auto delta = random_normal(tokens * d, 3);
  auto x = random_normal(tokens * d, 4);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t i = 0; i < d; ++i) {
      delta[t * d + i] = std::ldexp(delta[t * d + i], static_cast<int>(i * 5 % 17) - 12);
      x[t * d + i] = std::ldexp(x[t * d + i], static_cast<int>(i * 7 % 23) - 9);
    }
  delta = round_to_compute(delta);
  x = round_to_compute(x);
  const TensorArray left = upload(delta, tokens, d);
  const TensorArray right = upload(x, tokens, d);
  const Array<std::int32_t> left_exponent = exponents_of(delta, tokens, d);
  const Array<std::int32_t> right_exponent = exponents_of(x, tokens, d);
  const int log2_tokens = 9;
  const auto sum_of = [&](std::vector<std::pair<std::int64_t, std::int64_t>> blocks,
                          std::vector<std::int64_t> cuts) {
    const Array<float> c(d, d, stream);
    for (std::size_t k = 0; k + 1 < cuts.size(); ++k) {
      const std::int64_t count = cuts[k + 1] - cuts[k];
      const Array<std::int64_t> sum =
          upload_as(std::vector<std::int64_t>(static_cast<std::size_t>(d * count)), d, count);
      for (const auto& [begin, end] : blocks)
        accumulate_cross(left.view.row_range(begin, end - begin),
                         right.view.row_range(begin, end - begin), left_exponent, right_exponent,
                         log2_tokens, cuts[k], sum, stream);
      finish_cross(sum, left_exponent, right_exponent, log2_tokens, tokens, cuts[k], c, stream);
    }
    return download_as(c.view);
  };
  const auto whole = sum_of({{0, 100}, {100, 180}, {180, 300}}, {0, d});
  EXPECT_EQ(whole, sum_of({{180, 300}, {0, 100}, {100, 180}}, {0, panel, d}));
  for (std::int64_t i = 0; i < d; i += 13)
    for (std::int64_t j = 0; j < d; j += 7) {
      double want = 0.0;
      double size = 0.0;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const double product = static_cast<double>(delta[t * d + i]) * x[t * d + j];
        want += product;
        size += std::fabs(product);
      }
      ASSERT_NEAR(whole[i * d + j], want / tokens, 0x1p-20 * size / tokens) << i << ", " << j;
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, CrossMomentTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
