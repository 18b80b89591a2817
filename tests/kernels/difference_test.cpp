#include "kernels/difference.h"

#include <cmath>

#include "tests/kernels/weights_of.h"

namespace qpipe {
namespace {

class DifferenceTest : public WeightsTest {
 protected:
  double value_of(const Array<double>& total) { return download_as(total.view).front(); }
};

TEST_P(DifferenceTest, SquaredDifferenceIsAddedToTheTotal) {
  for (const DType a_type : types)
    for (const DType b_type : types)
      for (const auto& [rows, cols] :
           {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 37}, {700, 64}, {1300, 515}}) {
        const std::vector<float> a = rounded_to(a_type, random_normal(rows * cols, 1));
        const std::vector<float> b = rounded_to(b_type, random_normal(rows * cols, 2));
        double expected = 1000.0;
        for (std::size_t i = 0; i < a.size(); ++i)
          expected += std::pow(static_cast<double>(a[i]) - b[i], 2);
        const TensorArray a_device = upload_weights(a, rows, cols, a_type, cols + 8);
        const TensorArray b_device = upload_weights(b, rows, cols, b_type, cols);
        double first = 0.0;
        for (int repeat = 0; repeat < 2; ++repeat) {
          const Array<double> total = upload_as(std::vector<double>{1000.0}, 1, 1);
          add_squared_difference(a_device, b_device, total, stream);
          EXPECT_NEAR(value_of(total), expected, 1e-6 * expected);
          if (repeat == 0) first = value_of(total);
          EXPECT_EQ(value_of(total), first) << "not the same bits";
        }
      }
  const Array<double> total = upload_as(std::vector<double>{5.0}, 1, 1);
  add_squared_difference(Array<float>(0, 8, stream).view, Array<float>(0, 8, stream).view, total,
                         stream);
  EXPECT_EQ(value_of(total), 5.0);
  EXPECT_THROW(add_squared_difference(Array<float>(2, 8, stream).view,
                                      Array<float>(2, 9, stream).view, total, stream),
               std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, DifferenceTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
