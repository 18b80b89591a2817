#include "kernels/column_statistics.h"

#include <cmath>

#include "kernels/hessian.h"
#include "tests/kernels/weights_of.h"
#include "tests/reference/awq.h"

namespace qpipe {
namespace {

class ColumnStatisticsTest : public WeightsTest {};

TEST_P(ColumnStatisticsTest, MeanMagnitudeInAnyOrder) {
  const std::int64_t tokens = 1000;          // three whole runs of 256 rows and a short one
  for (const std::int64_t d : {300, 304}) {  // columns one by one, and in packets
    std::vector<float> x = random_normal(tokens * d, 1);
    for (std::int64_t t = 0; t < tokens; ++t) {
      x[static_cast<std::size_t>(t * d + 3)] *= 1e4f;
      x[static_cast<std::size_t>(t * d + 4)] *= 1e-6f;
      x[static_cast<std::size_t>(t * d + 5)] = 0.0f;
    }
    x = round_to_compute(x);
    const TensorArray device = upload(x, tokens, d);
    const Array<float> maximum = upload_as(std::vector<float>(d), 1, d);
    column_max_abs(device, maximum, stream);
    const std::vector<float> host_maximum = download(maximum.view);
    std::vector<std::int32_t> host_exponent(d);
    std::vector<float> copy = host_maximum;
    hessian_exponents({copy.data(), 1, d}, {host_exponent.data(), 1, d});
    const Array<std::int32_t> exponent = upload_as(host_exponent, 1, d);
    const auto sum_of = [&](std::initializer_list<std::pair<std::int64_t, std::int64_t>> ranges) {
      const Array<std::int64_t> sum = upload_as(std::vector<std::int64_t>(d), 1, d);
      for (const auto& [begin, count] : ranges)
        accumulate_column_abs(device.view.row_range(begin, count), exponent, 10, sum, stream);
      return download_as(sum.view);
    };
    const std::vector<std::int64_t> sum = sum_of({{0, 512}, {512, 488}});
    EXPECT_EQ(sum, sum_of({{512, 488}, {0, 512}, {0, 0}}));
    for (std::int64_t c = 0; c < d; ++c) {
      double expected = 0.0;
      for (std::int64_t t = 0; t < tokens; ++t)
        expected += std::abs(x[static_cast<std::size_t>(t * d + c)]);
      const double got = std::ldexp(static_cast<double>(sum[static_cast<std::size_t>(c)]),
                                    host_exponent[static_cast<std::size_t>(c)] + 10 - 62);
      ASSERT_NEAR(got, expected, 256 * 0x1p-24 * expected) << "column " << c;
    }
    EXPECT_EQ(sum[5], 0);
  }
}

TEST_P(ColumnStatisticsTest, RelativeMagnitudeInAnyOrder) {
  const std::int64_t rows = 150;
  for (const DType type : types)
    for (const std::int64_t group_size : {32, 96, 480}) {
      const std::int64_t d = 480;
      std::vector<float> values = rounded_to(type, random_normal(rows * d, 2));
      std::fill(values.begin(), values.begin() + 200, 0.0f);
      const TensorArray w = upload_weights(values, rows, d, type, d + 8);
      const Array<std::int64_t> sum = upload_as(std::vector<std::int64_t>(d), 1, d);
      const Array<std::int64_t> parts = upload_as(std::vector<std::int64_t>(d), 1, d);
      accumulate_relative_magnitude(w, group_size, sum, stream);
      for (const auto& [begin, count] :
           {std::pair<std::int64_t, std::int64_t>{70, 80}, {0, 70}, {0, 0}})
        accumulate_relative_magnitude(w.view.row_range(begin, count), group_size, parts, stream);
      const std::vector<std::int64_t> got = download_as(sum.view);
      EXPECT_EQ(got, download_as(parts.view));
      const std::vector<double> expected =
          reference::relative_magnitude({values.begin(), values.end()}, d, group_size);
      for (std::size_t c = 0; c < got.size(); ++c)
        ASSERT_NEAR(static_cast<double>(got[c]) * relative_magnitude_unit, expected[c],
                    0x1p-22 * expected[c] + 1e-10);
    }
  EXPECT_THROW(accumulate_relative_magnitude(Array<float>(2, 64, stream).view, 48,
                                             Array<std::int64_t>(1, 64, stream), stream),
               std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, ColumnStatisticsTest, testing::ValuesIn(backends()),
                         backend_name);

}  // namespace
}  // namespace qpipe
