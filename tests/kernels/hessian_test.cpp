#include "kernels/hessian.h"

#include <omp.h>

#include <cmath>
#include <limits>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

class HessianTest : public BackendTest {
 protected:
  struct Sum {
    std::vector<std::int64_t> sum;
    std::vector<float> h;
    std::vector<std::int32_t> exponent;
  };

  std::vector<std::int32_t> exponents(const std::vector<float>& x, std::int64_t tokens,
                                      std::int64_t d) {
    const TensorArray on_device = upload(x, tokens, d);
    const Array<float> maximum = upload_as(std::vector<float>(static_cast<std::size_t>(d)), 1, d);
    column_max_abs(on_device, maximum, stream);
    const auto host = download_as(maximum.view);
    std::vector<std::int32_t> result(static_cast<std::size_t>(d));
    hessian_exponents({host.data(), 1, d}, {result.data(), 1, d});
    return result;
  }

  void expect_exact_integers();
  void expect_rounding_of_double();
  void expect_one_sum_in_any_order();

  bool as_set = false;  // by accumulate_hessians

  // blocks: [begin, end) in tokens, added in the given order.
  Sum accumulate(const std::vector<float>& x, std::int64_t tokens, std::int64_t d, int log2_tokens,
                 const std::vector<std::pair<std::int64_t, std::int64_t>>& blocks) {
    Sum result;
    result.exponent = exponents(x, tokens, d);
    const TensorArray on_device = upload(x, tokens, d);
    const Array<std::int32_t> exponent = upload_as(result.exponent, 1, d);
    const Array<std::int64_t> sum =
        upload_as(std::vector<std::int64_t>(static_cast<std::size_t>(d * d)), d, d);
    for (const auto& [begin, end] : blocks) {
      const ConstTensor block = on_device.view.row_range(begin, end - begin);
      if (as_set)
        accumulate_hessians({{block, exponent, log2_tokens, 0, sum, {}, 1}}, stream);
      else
        accumulate_hessian(block, exponent, log2_tokens, 0, sum, stream);
    }
    result.sum = download_as(sum.view);
    const Array<float> h(d, d, stream);
    finish_hessian(sum, exponent, log2_tokens, tokens, 0, h, stream);
    result.h = download_as(h.view);
    return result;
  }
};

TEST_P(HessianTest, ColumnMaximumKeepsEarlierValuesAndNaN) {
  const std::int64_t tokens = 301;
  const std::int64_t d = 137;
  auto x = round_to_compute(random_normal(tokens * d, 1));
  x[200 * d + 5] = std::numeric_limits<float>::quiet_NaN();
  x[300 * d + 6] = -std::numeric_limits<float>::infinity();
  std::vector<float> maximum(static_cast<std::size_t>(d), 0.0f);
  maximum[7] = 100.0f;
  const TensorArray on_device = upload(x, tokens, d);
  const Array<float> found = upload_as(maximum, 1, d);
  column_max_abs(on_device, found, stream);
  // A second call with clean values must not lose the NaN.
  column_max_abs(on_device.view.row_range(0, 1), found, stream);
  const auto host = download_as(found.view);
  for (std::int64_t c = 0; c < d; ++c) {
    if (c == 5) {
      EXPECT_TRUE(std::isnan(host[c]));
      continue;
    }
    float expected = maximum[c];
    for (std::int64_t t = 0; t < tokens; ++t)
      expected = std::max(expected, std::fabs(x[t * d + c]));
    EXPECT_EQ(host[c], expected) << c;
  }
}

TEST(HessianExponents, SmallestPowerOfTwoAndFaults) {
  std::vector<float> maximum{0.0f, 1.0f, 1.0000001f, 0.5f, 0.75f, 3e-39f, 2.0f};
  std::vector<std::int32_t> e(maximum.size());
  const auto run = [&] {
    hessian_exponents({maximum.data(), 1, std::int64_t(maximum.size())},
                      {e.data(), 1, std::int64_t(e.size())});
  };
  run();
  EXPECT_EQ(e, (std::vector<std::int32_t>{0, 0, 1, -1, 0, -127, 1}));
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    maximum[3] = bad;
    try {
      run();
      FAIL() << "accepted " << bad;
    } catch (const std::domain_error& fault) {
      EXPECT_NE(std::string(fault.what()).find('3'), std::string::npos);
    }
  }
}

void HessianTest::expect_exact_integers() {
  // Small integers: every product and partial sum is exact in float32, so the result is the exact
  // integer sum over tokens.
  for (const std::int64_t d : {std::int64_t{1}, std::int64_t{33}, std::int64_t{300}}) {
    const std::int64_t tokens = 96;
    std::vector<float> x(static_cast<std::size_t>(tokens * d));
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = static_cast<float>(static_cast<int>((i * 7 + i / 13) % 17) - 8);
    const Sum result = accumulate(x, tokens, d, 7, {{0, 50}, {50, 51}, {51, 51}, {51, 96}});
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j) {
        double exact = 0.0;
        for (std::int64_t t = 0; t < tokens; ++t)
          exact += static_cast<double>(x[t * d + i]) * x[t * d + j];
        ASSERT_EQ(result.h[i * d + j], static_cast<float>(exact / static_cast<double>(tokens)))
            << d << ": " << i << ", " << j;
      }
  }
}

void HessianTest::expect_rounding_of_double() {
  const std::int64_t tokens = 700;
  const std::int64_t d = 530;
  auto x = random_normal(tokens * d, 2);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t c = 0; c < d; ++c)
      x[t * d + c] *= c == 9 ? 0.0f : std::ldexp(1.0f, static_cast<int>(c % 61) - 30);
  x = round_to_compute(x);
  const Sum result = accumulate(x, tokens, d, 20, {{0, 256}, {256, 512}, {512, 700}});
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      double exact = 0.0;
      double magnitude = 0.0;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const double product = static_cast<double>(x[t * d + i]) * x[t * d + j];
        exact += product;
        magnitude += std::fabs(product);
      }
      // Float32 sums of 256 terms (γ_256), one rounding to the fixed-point unit a block and one to
      // float.
      const double unit = std::ldexp(1.0, result.exponent[i] + result.exponent[j] + 20 - 62);
      const double tolerance =
          (257.0 * 0x1p-24 * magnitude + 2.0 * unit) / static_cast<double>(tokens);
      ASSERT_NEAR(result.h[i * d + j], exact / static_cast<double>(tokens), tolerance)
          << i << ", " << j;
      ASSERT_EQ(result.h[i * d + j], result.h[j * d + i]);
    }
  EXPECT_EQ(result.h[9 * d + 9], 0.0f);
}

void HessianTest::expect_one_sum_in_any_order() {
  const std::int64_t tokens = 512;
  const std::int64_t d = 257;
  const auto x = round_to_compute(random_normal(tokens * d, 3));
  const auto forward = accumulate(x, tokens, d, 9, {{0, 128}, {128, 256}, {256, 384}, {384, 512}});
  const auto backward = accumulate(x, tokens, d, 9, {{384, 512}, {128, 256}, {0, 128}, {256, 384}});
  EXPECT_EQ(forward.sum, backward.sum);
  EXPECT_EQ(forward.h, backward.h);
}

TEST_P(HessianTest, ExactOnIntegers) { expect_exact_integers(); }
TEST_P(HessianTest, WithinRoundingOfDoubleForAnyColumnScale) { expect_rounding_of_double(); }
TEST_P(HessianTest, SumDoesNotDependOnTheOrderOfBlocks) { expect_one_sum_in_any_order(); }
TEST_P(HessianTest, ExactOnIntegersOfSets) {
  as_set = true;
  expect_exact_integers();
}
TEST_P(HessianTest, WithinRoundingOfDoubleForAnyColumnScaleOfSets) {
  as_set = true;
  expect_rounding_of_double();
}
TEST_P(HessianTest, SumDoesNotDependOnTheOrderOfBlocksOfSets) {
  as_set = true;
  expect_one_sum_in_any_order();
}

TEST_P(HessianTest, BitsDoNotDependOnTheNumberOfThreads) {
  const std::int64_t tokens = 200;
  const std::int64_t d = 600;
  const auto x = round_to_compute(random_normal(tokens * d, 5));
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto one = accumulate(x, tokens, d, 8, {{0, tokens}});
  omp_set_num_threads(5);
  const auto five = accumulate(x, tokens, d, 8, {{0, tokens}});
  omp_set_num_threads(threads);
  EXPECT_EQ(one.sum, five.sum);
  EXPECT_EQ(one.h, five.h);
}

TEST_P(HessianTest, ColumnsOfAWiderMatrix) {
  const std::int64_t tokens = 64;
  const std::int64_t d = 40;
  const auto x = round_to_compute(random_normal(tokens * 100, 4));
  std::vector<float> part;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t c = 0; c < d; ++c) part.push_back(x[t * 100 + 30 + c]);
  const auto expected = accumulate(part, tokens, d, 6, {{0, tokens}});
  const TensorArray wide = upload(x, tokens, 100);
  const Array<std::int32_t> exponent = upload_as(expected.exponent, 1, d);
  const Array<std::int64_t> sum =
      upload_as(std::vector<std::int64_t>(static_cast<std::size_t>(d * d)), d, d);
  accumulate_hessian(wide.view.col_range(30, d), exponent, 6, 0, sum, stream);
  const auto found = download_as(sum.view);
  // The library may add in another order for another stride: compare within float32 rounding.
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      const double full = std::ldexp(1.0, 62 - 6) * 64.0;
      ASSERT_NEAR(static_cast<double>(found[i * d + j]),
                  static_cast<double>(expected.sum[i * d + j]), 64.0 * 0x1p-24 * full);
    }
}

// Two ranges of whole panels and a ragged one, in any order, by way of the host or not: the whole's
// bits.
TEST_P(HessianTest, RangesOfColumnsGiveTheBitsOfTheWhole) {
  const std::int64_t panel = hessian_panel(GetParam());
  const std::int64_t d = 3 * panel + panel / 2 + 9;
  const std::int64_t tokens = 90;
  const auto x = round_to_compute(random_normal(tokens * d, 6));
  const std::vector<std::pair<std::int64_t, std::int64_t>> blocks{{0, 50}, {50, 90}};
  const Sum whole = accumulate(x, tokens, d, 7, blocks);
  const TensorArray on_device = upload(x, tokens, d);
  const Array<std::int32_t> exponent = upload_as(whole.exponent, 1, d);
  std::vector<std::int32_t> order(static_cast<std::size_t>(d));
  for (std::int64_t k = 0; k < d; ++k) order[k] = static_cast<std::int32_t>(k * 7 % d);
  ASSERT_NE(d % 7, 0);
  const Array<std::int32_t> perm = upload_as(order, 1, d);
  const Array<float> h(d, d, stream);
  const Array<float> placed(d, d, stream);
  const Array<float> permuted(d, d, stream);
  for (const auto& [begin, end] :
       {std::pair{3 * panel, d}, {panel, 3 * panel}, {std::int64_t{0}, panel}}) {
    const Array<std::int64_t> sum(d - begin, end - begin, stream);
    fill_zero(sum.view.data, sum.memory.bytes(), stream);
    for (const auto& [first, last] : blocks)
      accumulate_hessian(on_device.view.row_range(first, last - first), exponent, 7, begin, sum,
                         stream);
    finish_hessian(sum, exponent, 7, tokens, begin, h, stream);
    const Array<float> columns(d - begin, end - begin, stream);
    finish_hessian_panel(sum, exponent, 7, tokens, begin, columns, stream);
    place_hessian_panel(columns, begin, {}, placed, stream);
    place_hessian_panel(columns, begin, perm, permuted, stream);
  }
  EXPECT_EQ(download_as(h.view), whole.h);
  EXPECT_EQ(download_as(placed.view), whole.h);
  const auto found = download_as(permuted.view);
  for (std::int64_t i = 0; i < d; i += 3)
    for (std::int64_t j = 0; j < d; ++j)
      ASSERT_EQ(found[i * d + j], whole.h[order[i] * d + order[j]]) << i << ", " << j;
  const Array<std::int64_t> narrow(d, panel - 1, stream);
  EXPECT_THROW(accumulate_hessian(on_device, exponent, 7, 0, narrow, stream),
               std::invalid_argument);
}

// Sets of rows of other widths, gathered or not, at addresses that fit vectors or not: each has the
// bits that it has alone, and those of its rows side by side.
TEST_P(HessianTest, BitsDoNotDependOnTheSetsBeside) {
  struct Set {
    std::int64_t d, rows, first_column, slots;
    bool gathers;
  };
  const std::int64_t tokens = 150;
  const std::int64_t width = 700;
  const auto x = round_to_compute(random_normal(tokens * width, 8));
  const TensorArray on_device = upload(x, tokens, width);
  std::vector<Set> sets{{256, 90, 0, 1, false},  {256, 150, 8, 1, true}, {40, 64, 16, 2, true},
                        {333, 150, 3, 1, false}, {129, 17, 5, 3, true},  {8, 1, 0, 1, false},
                        {512, 149, 0, 2, true}};
  while (sets.size() < 70) sets.push_back(sets[sets.size() % 7]);  // more than one launch takes
  std::vector<HessianRows> together;
  std::vector<Array<std::int32_t>> exponents_of_sets, sources;
  std::vector<Array<std::int64_t>> sums;
  std::vector<std::vector<std::int64_t>> expected;
  for (std::size_t i = 0; i < sets.size(); ++i) {
    const Set& set = sets[i];
    std::vector<std::int32_t> source;
    std::vector<float> rows;
    for (std::int64_t r = 0; r < set.rows; ++r) {
      const std::int64_t pair = (r * 7 + static_cast<std::int64_t>(i)) % (tokens * set.slots);
      source.push_back(static_cast<std::int32_t>(pair));
      const std::int64_t token = set.gathers ? pair / set.slots : r;
      const auto* first = &x[token * width + set.first_column];
      rows.insert(rows.end(), first, first + set.d);
    }
    exponents_of_sets.push_back(upload_as(exponents(rows, set.rows, set.d), 1, set.d));
    const TensorArray side_by_side = upload(rows, set.rows, set.d);
    const Array<std::int64_t> alone =
        upload_as(std::vector<std::int64_t>(static_cast<std::size_t>(set.d * set.d)), set.d, set.d);
    accumulate_hessians({{side_by_side, exponents_of_sets.back(), 8, 0, alone, {}, 1}}, stream);
    expected.push_back(download_as(alone.view));
    sums.push_back(upload_as(std::vector<std::int64_t>(static_cast<std::size_t>(set.d * set.d)),
                             set.d, set.d));
    HessianRows to;
    to.x = on_device.view.col_range(set.first_column, set.d);
    if (!set.gathers) to.x = to.x.row_range(0, set.rows);
    to.exponent = exponents_of_sets.back();
    to.log2_tokens = 8;
    to.sum = sums.back();
    if (set.gathers) {
      sources.push_back(upload_as(source, 1, set.rows));
      to.source = sources.back();
      to.slots = set.slots;
    }
    together.push_back(to);
  }
  together[3].x = together[3].x.row_range(0, 0);  // nothing comes of no rows
  expected[3].assign(expected[3].size(), 0);
  accumulate_hessians(together, stream);
  for (std::size_t i = 0; i < sets.size(); ++i) {
    const auto found = download_as(sums[i].view);
    const std::int64_t d = sets[i].d;
    for (std::int64_t r = 0; r < d; ++r)
      for (std::int64_t c = 0; c <= r; ++c)
        ASSERT_EQ(found[r * d + c], expected[i][r * d + c])
            << "set " << i << ": " << r << ", " << c;
  }
}

// Products of every magnitude against units of every size: halves go to the even neighbour, and
// what is far below a unit is nothing.
TEST_P(HessianTest, ProductsOfSetsAreRoundedToTheUnit) {
  const std::int64_t d = 96;
  std::vector<float> x(static_cast<std::size_t>(d));
  for (std::int64_t c = 0; c < d; ++c)
    x[c] = (c % 3 == 0 ? -1.0f : 1.0f) *
           std::ldexp(1.0f + static_cast<float>(c % 8) / 8.0f, static_cast<int>(c) - 80);
  const TensorArray on_device = upload(x, 1, d);
  // As if larger tokens came elsewhere.
  const Array<std::int32_t> exponent =
      upload_as(std::vector<std::int32_t>(static_cast<std::size_t>(d), 17), 1, d);
  const Array<std::int64_t> sum =
      upload_as(std::vector<std::int64_t>(static_cast<std::size_t>(d * d), 5), d, d);
  accumulate_hessians({{on_device, exponent, 3, 0, sum, {}, 1}}, stream);
  const auto found = download_as(sum.view);
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      const float product = x[i] * x[j];
      ASSERT_EQ(found[i * d + j], 5 + std::llrint(std::ldexp(double{product}, 62 - 37)))
          << i << ", " << j;
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, HessianTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
