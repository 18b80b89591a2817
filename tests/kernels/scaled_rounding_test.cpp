#include "kernels/scaled_rounding.h"

#include <cmath>
#include <numeric>

#include "kernels/scaling.h"
#include "tests/kernels/weights_of.h"
#include "tests/reference/awq.h"

namespace qpipe {
namespace {

class ScaledRoundingTest : public WeightsTest {
 protected:
  std::vector<float> positive(std::int64_t count, unsigned seed) {
    std::vector<float> s = random_normal(count, seed);
    for (float& x : s) x = std::exp(x);
    return s;
  }
};

// The steps that find_grids, round_to_grid and dequantize take, one after the other, give the same
// bits.
TEST_P(ScaledRoundingTest, IsScalingRoundingAndDividing) {
  for (const DType type : types)
    for (const std::int64_t group_size : {32, 96, 288, 576})
      for (const GridOptions grid : {GridOptions{4, false}, GridOptions{4, true},
                                     GridOptions{3, false}, GridOptions{8, true}}) {
        const std::int64_t rows = 13;
        const std::int64_t d = 576;
        std::vector<float> values = random_normal(rows * d, 5);
        std::fill(values.begin(), values.begin() + d, 0.0f);
        for (std::int64_t c = 0; c < d; ++c)
          values[static_cast<std::size_t>(d + c)] =
              std::abs(values[static_cast<std::size_t>(d + c)]);
        const TensorArray w = upload_weights(values, rows, d, type, d + 8);
        const Array<float> s = upload_as(positive(d, 6), 1, d);
        const Array<float> out(rows, d, stream);
        scaled_rounding(w, s, group_size, grid, out.view, stream);

        const Array<float> scaled(rows, d, stream);
        scale_weight(w, s, {}, scaled, stream);
        const Array<float> scale(rows, d / group_size, stream);
        const Array<std::uint8_t> zero(rows, d / group_size, stream);
        const Array<std::uint8_t> code(rows, d, stream);
        std::vector<std::int32_t> groups(static_cast<std::size_t>(d));
        for (std::int64_t c = 0; c < d; ++c)
          groups[static_cast<std::size_t>(c)] = static_cast<std::int32_t>(c / group_size);
        const Array<std::int32_t> group_of = upload_as(groups, 1, d);
        find_grids(scaled, group_size, grid, scale, zero, stream);
        round_to_grid(scaled, scale, zero, group_of, grid.bits, code, stream);
        dequantize(code, scale, zero, group_of, scaled.view, stream);
        std::vector<float> expected = download(scaled.view);
        const std::vector<float> factors = download(s.view);
        for (std::size_t i = 0; i < expected.size(); ++i)
          expected[i] /= factors[i % factors.size()];
        EXPECT_EQ(download(out.view), expected)
            << "group_size " << group_size << ", bits " << grid.bits;
        if (type == DType::bf16) {
          const TensorArray narrow(DType::bf16, rows, d, stream);
          scaled_rounding(w, s, group_size, grid, narrow, stream);
          for (float& x : expected) x = to_float(to_bf16(x));
          EXPECT_EQ(download(narrow), expected);
        }
      }
}

// Powers of two scale without rounding, so that double precision sees the same quotients; none of
// them is near a tie by this seed.
TEST_P(ScaledRoundingTest, MatchesDoublePrecision) {
  const std::int64_t rows = 20;
  const std::int64_t d = 128;
  const std::vector<float> w = random_normal(rows * d, 7);
  std::vector<float> s(static_cast<std::size_t>(d));
  for (std::size_t c = 0; c < s.size(); ++c) s[c] = std::ldexp(1.0f, static_cast<int>(c % 5) - 2);
  const Array<float> out(rows, d, stream);
  scaled_rounding(upload_as(w, rows, d).view, upload_as(s, 1, d), 64, {4, false}, out.view, stream);
  const std::vector<float> got = download(out.view);
  double largest = 0.0;
  for (std::size_t begin = 0; begin < w.size(); begin += 64) {
    std::vector<double> group;
    for (std::size_t i = begin; i < begin + 64; ++i)
      group.push_back(static_cast<double>(w[i]) * s[i % s.size()]);
    const std::vector<double> rounded = reference::round_group(group, 4, false);
    for (std::size_t i = begin; i < begin + 64; ++i)
      largest = std::max(largest, std::abs(got[i] - rounded[i - begin] / s[i % s.size()]) /
                                      std::abs(1e-3 + rounded[i - begin]));
  }
  EXPECT_LT(largest, 1e-5);
}

TEST_P(ScaledRoundingTest, EmptyAndWrongShapes) {
  const Array<float> s = upload_as(positive(64, 1), 1, 64);
  const Array<float> w(4, 64, stream);
  const Array<float> out(4, 64, stream);
  scaled_rounding(w.view.row_range(0, 0), s, 32, {}, out.view.row_range(0, 0), stream);
  EXPECT_THROW(scaled_rounding(w.view, s, 48, {}, out.view, stream), std::invalid_argument);
  EXPECT_THROW(scaled_rounding(w.view, s, 0, {}, out.view, stream), std::invalid_argument);
  EXPECT_THROW(scaled_rounding(w.view, s.view.col_range(0, 32), 32, {}, out.view, stream),
               std::invalid_argument);
  EXPECT_THROW(scaled_rounding(w.view, s, 32, {4, false, 2.4f}, out.view, stream),
               std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, ScaledRoundingTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
