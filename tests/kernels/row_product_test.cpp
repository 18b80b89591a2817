#include "kernels/row_product.h"

#include <cmath>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class RowProductTest : public BackendTest {
 protected:
  std::vector<float> multiply(const std::vector<float>& a, const std::vector<float>& b,
                              RightFactor kind, std::int64_t rows, std::int64_t depth,
                              std::int64_t cols) {
    const Array<float> c(rows, cols, stream);
    multiply_rows(upload_as(a, rows, depth), upload_as(b, depth, cols), kind, c, stream);
    return download_as(c.view);
  }

  void expect_exact_and_of_each_row_alone(RightFactor kind, std::int64_t depth, std::int64_t cols) {
    const std::int64_t rows = 67;
    const auto a = random_normal(rows * depth, 1);
    auto b = random_normal(depth * cols, 2);
    if (kind != RightFactor::plain)
      for (std::int64_t k = 0; k < depth; ++k)
        for (std::int64_t j = 0; j < k; ++j) b[k * cols + j] = 0.0f;
    const auto c = multiply(a, b, kind, rows, depth, cols);
    for (std::int64_t r = 0; r < rows; r += 3)
      for (std::int64_t j = 0; j < cols; j += 37) {
        double want = 0.0;
        double size = 0.0;
        for (std::int64_t k = 0; k < depth; ++k) {
          const float right =
              kind == RightFactor::upper_transposed ? b[j * cols + k] : b[k * cols + j];
          const double product = static_cast<double>(a[r * depth + k]) * right;
          want += product;
          size += std::fabs(product);
        }
        ASSERT_NEAR(c[r * cols + j], want, 0x1p-20 * size + 1e-30) << r << ", " << j;
      }
    const std::int64_t first = product_row_block;
    const std::vector<float> part(a.begin() + first * depth, a.begin() + (first + 9) * depth);
    const std::vector<float> want(c.begin() + first * cols, c.begin() + (first + 9) * cols);
    EXPECT_EQ(multiply(part, b, kind, 9, depth, cols), want);
  }
};

// More columns than are split at a time.
TEST_P(RowProductTest, IsAsExactAsSinglePrecisionAndOfEachRowAlone) {
  expect_exact_and_of_each_row_alone(RightFactor::plain, 150, 2100);
  for (const RightFactor kind : {RightFactor::upper, RightFactor::upper_transposed})
    for (const std::int64_t d : {1, 130, 2100}) expect_exact_and_of_each_row_alone(kind, d, d);
}

INSTANTIATE_TEST_SUITE_P(Backends, RowProductTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
