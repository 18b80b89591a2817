#include "kernels/scaling.h"

#include <cmath>

#include "tests/kernels/weights_of.h"

namespace qpipe {
namespace {

class ScalingTest : public WeightsTest {
 protected:
  static std::vector<float> positive(std::int64_t count, unsigned seed) {
    std::vector<float> s = random_normal(count, seed);
    for (float& x : s) x = std::exp(x);
    return s;
  }
};

TEST_P(ScalingTest, WeightIsMultipliedThenDivided) {
  const std::int64_t rows = 37;
  const std::int64_t d = 83;
  const std::vector<float> column = positive(d, 1);
  const std::vector<float> row = positive(rows, 2);
  const Array<float> column_device = upload_as(column, 1, d);
  const Array<float> row_device = upload_as(row, 1, rows);
  for (const DType type : types) {
    const std::vector<float> values = random_normal(rows * d, 3);
    const TensorArray w = upload_weights(values, rows, d, type, d + 5);
    const Array<float> out(rows, d, stream);
    for (const bool columns : {true, false})
      for (const bool rows_too : {true, false}) {
        scale_weight(w, columns ? column_device.view : Matrix<float>{},
                     rows_too ? row_device.view : Matrix<float>{}, out, stream);
        std::vector<float> expected;
        for (std::int64_t i = 0; i < rows * d; ++i) {
          float x = rounded_to(type, values[static_cast<std::size_t>(i)]);
          if (columns) x *= column[static_cast<std::size_t>(i % d)];
          if (rows_too) x /= row[static_cast<std::size_t>(i / d)];
          expected.push_back(x);
        }
        EXPECT_EQ(download(out.view), expected);
      }
  }
  EXPECT_THROW(scale_weight(Array<float>(4, d, stream).view, row_device, {},
                            Array<float>(4, d, stream), stream),
               std::invalid_argument);
  scale_weight(Array<float>(0, d, stream).view, column_device, {}, Array<float>(0, d, stream),
               stream);
}

TEST_P(ScalingTest, HessianStaysSymmetric) {
  const std::int64_t d = 70;
  std::vector<float> h = random_normal(d * d, 4);
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j < i; ++j)
      h[static_cast<std::size_t>(i * d + j)] = h[static_cast<std::size_t>(j * d + i)];
  const std::vector<float> s = positive(d, 5);
  const Array<float> device = upload_as(h, d, d);
  unscale_hessian(device, upload_as(s, 1, d), stream);
  const std::vector<float> got = download(device.view);
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j < d; ++j) {
      const auto at = static_cast<std::size_t>(i * d + j);
      const double exact =
          static_cast<double>(h[at]) /
          (static_cast<double>(s[static_cast<std::size_t>(i)]) * s[static_cast<std::size_t>(j)]);
      ASSERT_NEAR(got[at], exact, 0x1.1p-23 * std::abs(exact));
      ASSERT_EQ(got[at], got[static_cast<std::size_t>(j * d + i)]);
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, ScalingTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
