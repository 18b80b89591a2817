#include "kernels/row_product.h"

#include <cmath>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class RowProductTest : public BackendTest {
 protected:
  std::vector<float> multiply(const std::vector<float>& a, const std::vector<float>& b,
                              std::int64_t rows, std::int64_t depth, std::int64_t cols) {
    const Array<float> c(rows, cols, stream);
    multiply_rows(upload_as(a, rows, depth), upload_as(b, depth, cols), c, stream);
    return download_as(c.view);
  }
};

TEST_P(RowProductTest, IsAsExactAsSinglePrecisionAndOfEachRowAlone) {
  const std::int64_t rows = 67;
  const std::int64_t depth = 150;
  const std::int64_t cols = 2100;  // more than are split at a time
  const auto a = random_normal(rows * depth, 1);
  const auto b = random_normal(depth * cols, 2);
  const auto c = multiply(a, b, rows, depth, cols);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0; j < cols; j += 37) {
      double want = 0.0;
      double size = 0.0;
      for (std::int64_t k = 0; k < depth; ++k) {
        const double product = static_cast<double>(a[r * depth + k]) * b[k * cols + j];
        want += product;
        size += std::fabs(product);
      }
      ASSERT_NEAR(c[r * cols + j], want, 0x1p-20 * size) << r << ", " << j;
    }
  const std::vector<float> part(a.begin() + 31 * depth, a.begin() + 40 * depth);
  const std::vector<float> want(c.begin() + 31 * cols, c.begin() + 40 * cols);
  EXPECT_EQ(multiply(part, b, 9, depth, cols), want);
}

INSTANTIATE_TEST_SUITE_P(Backends, RowProductTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
