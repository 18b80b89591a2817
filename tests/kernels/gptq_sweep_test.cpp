#include "kernels/gptq_sweep.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/factor.h"
#include "tests/kernels/backends.h"
#include "tests/reference/gptq.h"

namespace qpipe {
namespace {

struct Codes {
  std::vector<std::uint8_t> code;
  std::vector<float> scale;
  std::vector<std::uint8_t> zero;
  std::vector<float> loss;
};

double relative(double a, double b) { return std::fabs(a - b) / std::max(std::fabs(b), 1e-300); }

double total(const std::vector<double>& x) { return std::accumulate(x.begin(), x.end(), 0.0); }
double total(const std::vector<float>& x) { return std::accumulate(x.begin(), x.end(), 0.0); }

double mismatch(const std::vector<std::uint8_t>& code, const std::vector<int>& expected) {
  std::int64_t different = 0;
  for (std::size_t i = 0; i < code.size(); ++i) different += int{code[i]} != expected[i];
  return static_cast<double>(different) / static_cast<double>(code.size());
}

// Unit upper triangular, with couplings that die out: what a factor of a Hessian looks like.
std::vector<float> random_unit_upper(std::int64_t d, unsigned seed) {
  auto n = random_normal(d * d, seed, 0.3f / std::sqrt(static_cast<float>(d)));
  for (std::int64_t i = 0; i < d; ++i) {
    std::fill(n.begin() + i * d, n.begin() + i * d + i, 0.0f);
    n[i * d + i] = 1.0f;
    if (i + 1 < d) n[i * d + i + 1] += 0.3f;
  }
  return n;
}

std::vector<float> random_pivot(std::int64_t d, unsigned seed) {
  auto pivot = random_normal(d, seed);
  for (float& x : pivot) x = 0.5f + std::fabs(x);
  return pivot;
}

class GptqSweepTest : public BackendTest {
 protected:
  // Rows [begin, begin + count) of w in calls of the given sizes.
  Codes sweep(const std::vector<float>& w, std::int64_t rows, std::int64_t d,
              const std::vector<float>& n, const std::vector<float>& pivot,
              const SweepOptions& options, const std::vector<std::int64_t>& calls,
              const std::vector<std::int32_t>& group_of = {}, const Codes& grids = {}) {
    const std::int64_t groups = d / options.group_size;
    const Array<float> w_device = upload_as(w, rows, d);
    const Array<float> n_device = upload_as(n, d, d);
    const Array<float> pivot_device = upload_as(pivot, 1, d);
    Array<float> scale(rows, groups, stream);
    Array<std::uint8_t> zero(rows, groups, stream);
    Array<std::int32_t> group_device;
    if (options.static_grids) {
      scale = upload_as(grids.scale, rows, groups);
      zero = upload_as(grids.zero, rows, groups);
      group_device = upload_as(group_of, 1, d);
    }
    const Array<std::uint8_t> code(rows, d, stream);
    const Array<float> loss(1, rows, stream);
    std::int64_t begin = 0;
    for (const std::int64_t count : calls) {
      gptq_sweep(w_device.view.row_range(begin, count), n_device, pivot_device, options,
                 group_device, scale.view.row_range(begin, count),
                 zero.view.row_range(begin, count), code.view.row_range(begin, count),
                 loss.view.col_range(begin, count), stream);
      begin += count;
    }
    EXPECT_EQ(begin, rows);
    EXPECT_EQ(download_as(w_device.view), w);
    return {download_as(code.view), download_as(scale.view), download_as(zero.view),
            download_as(loss.view)};
  }
};

// The whole chain, factor and sweep, against Cholesky → inverse → Cholesky.
TEST_P(GptqSweepTest, CodesOfTheTextbook) {
  struct Case {
    std::int64_t rows, d, group_size;
    int bits;
    bool symmetric;
  };
  for (const Case& c :
       {Case{64, 256, 64, 4, true}, Case{40, 192, 32, 2, false}, Case{33, 96, 96, 4, true},
        Case{20, 576, 64, 3, false}, Case{17, 576, 576, 4, false}, Case{48, 320, 160, 8, true},
        Case{1, 64, 16, 4, false}, Case{5, 1, 1, 4, true}}) {
    const std::int64_t samples = 2 * c.d;
    auto x = random_normal(samples * c.d, 31);
    for (std::int64_t t = 0; t < samples; ++t)
      for (std::int64_t k = 1; k < c.d; ++k) x[t * c.d + k] += 0.7f * x[t * c.d + k - 1];
    const std::int64_t dead = c.d > 8 ? 7 : -1;
    std::vector<double> h(static_cast<std::size_t>(c.d * c.d));
    std::vector<float> h_float(h.size());
    double mean = 0.0;
    for (std::int64_t i = 0; i < c.d; ++i)
      for (std::int64_t j = 0; j <= i; ++j) {
        double sum = 0.0;
        for (std::int64_t t = 0; t < samples; ++t)
          sum += static_cast<double>(x[t * c.d + i]) * x[t * c.d + j];
        const float value =
            i == dead || j == dead ? 0.0f : static_cast<float>(sum / static_cast<double>(samples));
        h_float[i * c.d + j] = h_float[j * c.d + i] = value;
        h[i * c.d + j] = h[j * c.d + i] = value;
        if (i == j) mean += value / static_cast<double>(c.d);
      }
    const double damp = 0.01 * mean;
    for (std::int64_t i = 0; i < c.d; ++i) h[i * c.d + i] += (i == dead ? 1.0 : 0.0) + damp;

    auto w = random_normal(c.rows * c.d, 32, 0.05f);
    if (dead >= 0)
      for (std::int64_t r = 0; r < c.rows; ++r) w[r * c.d + dead] = 0.0f;
    const auto expected =
        reference::gptq({w.begin(), w.end()}, c.rows, h, c.d, c.bits, c.symmetric, c.group_size);
    ASSERT_TRUE(expected);

    std::vector<std::int32_t> perm(static_cast<std::size_t>(c.d));
    std::iota(perm.begin(), perm.end(), 0);
    const Array<float> n(c.d, c.d, stream);
    const Array<float> pivot(1, c.d, stream);
    const Array<float> h_device = upload_as(h_float, c.d, c.d);
    const Array<std::int32_t> perm_device = upload_as(perm, 1, c.d);
    ASSERT_TRUE(factor(h_device, perm_device, damp, n, pivot, stream));
    const Codes found = sweep(w, c.rows, c.d, download_as(n.view), download_as(pivot.view),
                              {{c.bits, c.symmetric, 0.0f}, c.group_size, false}, {c.rows});
    const std::string what =
        std::to_string(c.d) + " columns, groups of " + std::to_string(c.group_size);
    // A code on a tie may flip and change the codes after it in its row; the loss hardly moves.
    // CUDA's factor is float32.
    EXPECT_LE(mismatch(found.code, expected->code), stream.on_cuda() ? 2e-2 : 1e-3) << what;
    EXPECT_LE(relative(total(found.loss), total(expected->loss)), stream.on_cuda() ? 5e-3 : 1e-3)
        << what;
    for (std::int64_t r = 0; r < c.rows; ++r) {
      const auto i = static_cast<std::size_t>(r * (c.d / c.group_size));
      EXPECT_EQ(static_cast<double>(found.scale[i]), expected->grid[i].scale)
          << what;  // the first group sees original weights
      EXPECT_EQ(int{found.zero[i]}, expected->grid[i].zero) << what;
    }
  }
}

// Both formulations in double choose the same codes.
TEST(GptqFormulation, FactorEqualsTextbook) {
  const std::int64_t d = 128;
  const std::int64_t rows = 32;
  auto x = random_normal(2 * d * d, 41);
  for (std::int64_t t = 0; t < 2 * d; ++t)
    for (std::int64_t k = 1; k < d; ++k) x[t * d + k] += 0.8f * x[t * d + k - 1];
  std::vector<double> h(static_cast<std::size_t>(d * d));
  std::vector<double> reversed(h.size());
  for (std::int64_t i = 0; i < d; ++i)
    for (std::int64_t j = 0; j < d; ++j) {
      for (std::int64_t t = 0; t < 2 * d; ++t)
        h[i * d + j] += static_cast<double>(x[t * d + i]) * x[t * d + j];
      reversed[(d - 1 - i) * d + (d - 1 - j)] = h[i * d + j];
    }
  const auto l = reference::cholesky(reversed, d);
  ASSERT_TRUE(l);
  std::vector<double> n(h.size());
  std::vector<double> pivot(static_cast<std::size_t>(d));
  for (std::int64_t j = 0; j < d; ++j) {
    pivot[j] = (*l)[(d - 1 - j) * d + (d - 1 - j)];
    for (std::int64_t i = 0; i <= j; ++i)
      n[i * d + j] = (*l)[(d - 1 - i) * d + (d - 1 - j)] / pivot[j];
  }
  const auto w = random_normal(rows * d, 42, 0.05f);
  const auto textbook = reference::gptq({w.begin(), w.end()}, rows, h, d, 4, false, 32);
  const auto by_factor =
      reference::gptq_by_factor({w.begin(), w.end()}, rows, n, pivot, d, 4, false, 32);
  ASSERT_TRUE(textbook);
  EXPECT_EQ(textbook->code, by_factor.code);
  EXPECT_LE(relative(total(by_factor.loss), total(textbook->loss)), 1e-9);
}

// Panels, blocks and groups of every kind against the recursion in double.
TEST_P(GptqSweepTest, RecursionForAllGroupSizes) {
  struct Case {
    std::int64_t rows, d, group_size;
  };
  for (const Case& c :
       {Case{33, 64, 32}, Case{70, 96, 48}, Case{5, 576, 64}, Case{35, 576, 32},
        Case{40, 1536, 128}, Case{3, 1536, 512}, Case{9, 2048, 1024}, Case{6, 768, 384},
        Case{130, 640, 128}, Case{2, 1152, 192}, Case{7, 1100, 1100}, Case{150, 520, 130}}) {
    const auto n = random_unit_upper(c.d, 51);
    const auto pivot = random_pivot(c.d, 52);
    const auto w = random_normal(c.rows * c.d, 53, 0.05f);
    for (const bool symmetric : {true, false}) {
      const auto expected =
          reference::gptq_by_factor({w.begin(), w.end()}, c.rows, {n.begin(), n.end()},
                                    {pivot.begin(), pivot.end()}, c.d, 4, symmetric, c.group_size);
      const Codes found =
          sweep(w, c.rows, c.d, n, pivot, {{4, symmetric, 0.0f}, c.group_size, false}, {c.rows});
      const std::string what =
          std::to_string(c.d) + " columns, groups of " + std::to_string(c.group_size);
      EXPECT_LE(mismatch(found.code, expected.code), 1e-3) << what;
      EXPECT_LE(relative(total(found.loss), total(expected.loss)), 1e-3) << what;
      std::int64_t different =
          0;  // a scale within float32 rounding of a float16 boundary, or after a flipped code
      for (std::size_t i = 0; i < found.scale.size(); ++i)
        different += static_cast<double>(found.scale[i]) != expected.grid[i].scale ||
                     int{found.zero[i]} != expected.grid[i].zero;
      EXPECT_LE(different, static_cast<std::int64_t>(found.scale.size()) / 50 + 1) << what;
    }
  }
}

TEST_P(GptqSweepTest, StaticGridsOfPermutedColumns) {
  const std::int64_t rows = 45;
  const std::int64_t d = 640;
  const std::int64_t group_size = 64;
  const auto n = random_unit_upper(d, 61);
  const auto pivot = random_pivot(d, 62);
  const auto w = random_normal(rows * d, 63, 0.05f);
  std::vector<std::int32_t> group_of(static_cast<std::size_t>(d));
  for (std::int64_t c = 0; c < d; ++c)
    group_of[c] = static_cast<std::int32_t>(c * 37 % d / group_size);
  Codes grids;
  std::vector<reference::Grid> exact;
  for (std::int64_t i = 0; i < rows * d / group_size; ++i) {
    grids.scale.push_back(to_float(to_f16(0.015f + 0.0001f * static_cast<float>(i % 91))));
    grids.zero.push_back(static_cast<std::uint8_t>(6 + i % 5));
    exact.push_back({grids.scale.back(), grids.zero.back()});
  }
  const auto expected = reference::gptq_by_factor({w.begin(), w.end()}, rows, {n.begin(), n.end()},
                                                  {pivot.begin(), pivot.end()}, d, 4, false,
                                                  group_size, exact, group_of);
  const Codes found =
      sweep(w, rows, d, n, pivot, {{4, false, 0.0f}, group_size, true}, {rows}, group_of, grids);
  EXPECT_LE(mismatch(found.code, expected.code), 1e-3);
  EXPECT_LE(relative(total(found.loss), total(expected.loss)), 1e-3);
  EXPECT_EQ(found.scale, grids.scale);
  EXPECT_EQ(found.zero, grids.zero);
}

TEST_P(GptqSweepTest, ARowDoesNotDependOnTheOthers) {
  const std::int64_t rows = 301;
  for (const std::int64_t group_size : {32, 128, 48, 576, 192}) {
    const std::int64_t d = group_size == 128 ? 640 : 576;
    const auto n = random_unit_upper(d, 71);
    const auto pivot = random_pivot(d, 72);
    const auto w = random_normal(rows * d, 73, 0.05f);
    for (const float norm : {0.0f, 2.4f}) {
      const SweepOptions options{{4, false, norm}, group_size, false};
      const Codes whole = sweep(w, rows, d, n, pivot, options, {rows});
      const Codes parts = sweep(w, rows, d, n, pivot, options, {1, 5, 32, 64, 129, 0, 3, 67});
      EXPECT_EQ(whole.code, parts.code);
      EXPECT_EQ(whole.scale, parts.scale);
      EXPECT_EQ(whole.zero, parts.zero);
      EXPECT_EQ(whole.loss, parts.loss);
    }
  }
}

// At the boundaries between codes and one step of float32 beside them the codes are those of the
// correctly rounded quotient, ties to even, for scales over the whole range of float16.
TEST_P(GptqSweepTest, BoundariesBetweenCodesAreExact) {
  constexpr std::int64_t d = 51;  // 17 boundaries, each with its two neighbours
  std::vector<float> n(static_cast<std::size_t>(d * d));
  for (std::int64_t i = 0; i < d; ++i) n[i * d + i] = 1.0f;  // no coupling
  Codes grids;
  std::vector<float> w;
  std::vector<std::uint8_t> expected;
  for (std::uint32_t bits = 0x0001; bits < 0x7000; bits += 7) {  // to 2^13
    f16 half;
    half.bits = static_cast<std::uint16_t>(bits);
    const float scale = to_float(half);
    const int zero = static_cast<int>(bits % 16);
    grids.scale.push_back(scale);
    grids.zero.push_back(static_cast<std::uint8_t>(zero));
    for (int boundary = 0; boundary < 17; ++boundary) {
      const float at = (static_cast<float>(boundary - zero) - 0.5f) * scale;  // exact
      for (const float x : {std::nextafterf(at, -INFINITY), at, std::nextafterf(at, INFINITY)}) {
        w.push_back(x);
        const float code = std::nearbyintf(x / scale) + static_cast<float>(zero);
        expected.push_back(static_cast<std::uint8_t>(std::clamp(code, 0.0f, 15.0f)));
      }
    }
  }
  const auto rows = static_cast<std::int64_t>(grids.scale.size());
  const std::vector<std::int32_t> group_of(static_cast<std::size_t>(d), 0);
  const Codes found = sweep(w, rows, d, n, std::vector<float>(static_cast<std::size_t>(d), 1.0f),
                            {{4, false, 0.0f}, d, true}, {rows}, group_of, grids);
  EXPECT_EQ(found.code, expected);
}

// On CUDA more rows choose higher tiles of the multiplication; the bits must stay.
TEST_P(GptqSweepTest, ManyRowsEqualFewRows) {
  if (!stream.on_cuda()) GTEST_SKIP() << "the CPU has one tile";
  const std::int64_t rows = 12000;
  const std::int64_t d = 1280;
  const auto n = random_unit_upper(d, 81);
  const auto pivot = random_pivot(d, 82);
  const auto w = random_normal(rows * d, 83, 0.05f);
  const SweepOptions options{{4, true, 0.0f}, 128, false};
  const Codes whole = sweep(w, rows, d, n, pivot, options, {rows});
  const Codes parts = sweep(w, rows, d, n, pivot, options, {100, 1900, 10000});
  EXPECT_EQ(whole.code, parts.code);
  EXPECT_EQ(whole.loss, parts.loss);
}

// The search of the sweep finds grids that beat the full range: the best of all, in the sum of
// squares, or in that which the loss is made of.
TEST_P(GptqSweepTest, SearchInsideTheSweepLowersTheError) {
  const std::int64_t rows = 37;
  const std::int64_t d = 256;
  std::vector<float> n(static_cast<std::size_t>(d * d));
  for (std::int64_t i = 0; i < d; ++i)
    n[i * d + i] = 1.0f;  // no coupling: the sweep is round to nearest
  const auto w = random_normal(rows * d, 91, 0.05f);
  for (const auto& [weighted, symmetric] : {std::pair{false, false}, {true, false}, {true, true}})
    for (const std::int64_t group_size : {16, 32, 64, 128, 256}) {
      const std::vector<float> pivot =
          weighted ? random_pivot(d, 92) : std::vector<float>(static_cast<std::size_t>(d), 1.0f);
      const Codes searched =
          sweep(w, rows, d, n, pivot, {{3, symmetric, 2.0f}, group_size, false, weighted}, {rows});
      const std::int64_t groups = d / group_size;
      for (std::int64_t r = 0; r < rows; ++r) {
        double best_loss = 0.0;
        for (std::int64_t g = 0; g < groups; ++g) {
          const auto begin = w.begin() + r * d + g * group_size;
          const std::vector<double> group(begin, begin + group_size);
          double best = 1e300;
          for (int step = 0; step < 80; ++step) {
            const double first = weighted && symmetric ? 1.1 : 1.0;
            const auto grid = reference::find_grid(group, 3, symmetric, first - step / 100.0);
            double error = 0.0;
            for (std::size_t c = 0; c < group.size(); ++c) {
              const double miss =
                  group[c] - reference::value(reference::nearest_code(group[c], grid, 3), grid);
              const double factor = pivot[static_cast<std::size_t>(g * group_size) + c];
              error += factor * factor * miss * miss;
            }
            best = std::min(best, error);
          }
          best_loss += best;
        }
        ASSERT_NEAR(searched.loss[r], best_loss, 3e-5 * best_loss)
            << "row " << r << ", groups of " << group_size;
      }
    }
}

TEST_P(GptqSweepTest, GatherAndScatterAreInverse) {
  const std::int64_t rows = 11;
  const std::int64_t d = 70;
  const auto values = random_normal(rows * d, 95);
  std::vector<std::int32_t> perm(static_cast<std::size_t>(d));
  std::iota(perm.begin(), perm.end(), 0);
  std::shuffle(perm.begin(), perm.end(), std::mt19937(3));
  std::vector<std::uint8_t> dead(static_cast<std::size_t>(d));
  dead[13] = 1;
  const Array<std::int32_t> perm_device = upload_as(perm, 1, d);
  const Array<std::uint8_t> dead_device = upload_as(dead, 1, d);
  std::vector<f16> half;
  std::vector<bf16> brain;
  for (const float x : values) {
    half.push_back(to_f16(x));
    brain.push_back(to_bf16(x));
  }
  const Array<float> as_float = upload_as(values, rows, d);
  const Array<f16> as_half = upload_as(half, rows, d);
  const Array<bf16> as_brain = upload_as(brain, rows, d);
  const Array<float> out(rows, d, stream);
  const auto check = [&](ConstTensor w, auto expected) {
    gather_columns(w, perm_device, dead_device, out, stream);
    const auto found = download_as(out.view);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t k = 0; k < d; ++k)
        ASSERT_EQ(found[r * d + k],
                  perm[k] == 13 ? 0.0f : expected(static_cast<std::size_t>(r * d + perm[k])));
  };
  check(as_float.view, [&](std::size_t i) { return values[i]; });
  check(as_half.view, [&](std::size_t i) { return to_float(half[i]); });
  check(as_brain.view, [&](std::size_t i) { return to_float(brain[i]); });

  std::vector<std::uint8_t> code(static_cast<std::size_t>(rows * d));
  for (std::size_t i = 0; i < code.size(); ++i) code[i] = static_cast<std::uint8_t>(i * 31 % 251);
  const Array<std::uint8_t> code_device = upload_as(code, rows, d);
  const Array<std::uint8_t> scattered(rows, d, stream);
  scatter_columns(code_device, perm_device, scattered, stream);
  const auto found = download_as(scattered.view);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t k = 0; k < d; ++k) ASSERT_EQ(found[r * d + perm[k]], code[r * d + k]);
}

INSTANTIATE_TEST_SUITE_P(Backends, GptqSweepTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
