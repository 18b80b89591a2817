#include "kernels/split_multiply.h"

#include <cmath>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class SplitMultiplyTest : public BackendTest {
 protected:
  std::vector<float> multiply(const std::vector<float>& c, const std::vector<float>& a,
                              const std::vector<float>& b, std::int64_t rows, std::int64_t depth,
                              std::int64_t cols) {
    const Array<float> c_device = upload_as(c, rows, cols);
    if constexpr (has_cuda) {
      const cuda::SplitMultiply split_multiply(rows, depth, cols, stream);
      split_multiply.run(c_device, upload_as(a, rows, depth), upload_as(b, depth, cols), c_device,
                         stream);
    }
    return download_as(c_device.view);
  }
};

// As exact as float32: |error| ≤ 2^-20 Σ |a| |b|, whatever the sizes of rows of a and of columns of
// b.
TEST_P(SplitMultiplyTest, IsAsExactAsSinglePrecision) {
  if (!stream.on_cuda()) GTEST_SKIP() << "CUDA only";
  struct Case {
    std::int64_t rows, depth, cols;
  };
  for (const Case& s : {Case{1, 1, 1}, Case{5, 32, 7}, Case{128, 512, 128}, Case{129, 480, 257},
                        Case{300, 100, 64}, Case{64, 1024, 1000}}) {
    auto a = random_normal(s.rows * s.depth, 1);
    auto b = random_normal(s.depth * s.cols, 2);
    const auto c = random_normal(s.rows * s.cols, 3);
    for (std::int64_t i = 0; i < s.rows; ++i)
      for (std::int64_t k = 0; k < s.depth; ++k)
        a[i * s.depth + k] = std::ldexp(a[i * s.depth + k], static_cast<int>(i * 7 % 60) - 30);
    for (std::int64_t k = 0; k < s.depth; ++k)
      for (std::int64_t j = 0; j < s.cols; ++j)
        b[k * s.cols + j] = std::ldexp(
            b[k * s.cols + j], static_cast<int>(j * 11 % 40) - 20 - static_cast<int>(k % 12));
    const auto got = multiply(c, a, b, s.rows, s.depth, s.cols);
    for (std::int64_t i = 0; i < s.rows; ++i)
      for (std::int64_t j = 0; j < s.cols; ++j) {
        double want = c[i * s.cols + j];
        double size = std::fabs(want);
        for (std::int64_t k = 0; k < s.depth; ++k) {
          const double product = static_cast<double>(a[i * s.depth + k]) * b[k * s.cols + j];
          want += product;
          size += std::fabs(product);
        }
        ASSERT_NEAR(got[i * s.cols + j], want, 0x1p-20 * size)
            << s.rows << " x " << s.depth << " x " << s.cols << ": " << i << ", " << j;
      }
  }
}

TEST_P(SplitMultiplyTest, ARowDoesNotDependOnTheOthers) {
  if (!stream.on_cuda()) GTEST_SKIP() << "CUDA only";
  constexpr std::int64_t rows = 200;
  constexpr std::int64_t depth = 96;
  constexpr std::int64_t cols = 140;
  const auto a = random_normal(rows * depth, 4);
  const auto b = random_normal(depth * cols, 5);
  const auto c = random_normal(rows * cols, 6);
  const auto whole = multiply(c, a, b, rows, depth, cols);
  for (const std::int64_t row : {0, 7, 8, 63, 64, 127, 128, 199}) {
    const auto one =
        multiply({c.begin() + row * cols, c.begin() + (row + 1) * cols},
                 {a.begin() + row * depth, a.begin() + (row + 1) * depth}, b, 1, depth, cols);
    EXPECT_EQ(one, std::vector<float>(whole.begin() + row * cols, whole.begin() + (row + 1) * cols))
        << row;
  }
}

TEST_P(SplitMultiplyTest, ValuesThatAreNotFiniteStayInTheirRow) {
  if (!stream.on_cuda()) GTEST_SKIP() << "CUDA only";
  auto a = random_normal(3 * 32, 7);
  a[40] = NAN;
  a[70] = INFINITY;
  const auto got = multiply(std::vector<float>(3 * 5, 0.0f), a, random_normal(32 * 5, 8), 3, 32, 5);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isfinite(got[i]), i < 5) << i;
}

INSTANTIATE_TEST_SUITE_P(Backends, SplitMultiplyTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
