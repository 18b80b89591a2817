#include "kernels/clip_search.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/backends.h"
#include "tests/reference/awq.h"

namespace qpipe {
namespace {

class ClipSearchTest : public BackendTest {
 protected:
  // H = XᵀX of correlated tokens.
  static std::vector<float> make_hessian(std::int64_t d, unsigned seed) {
    const std::int64_t tokens = 2 * d;
    std::vector<float> x = random_normal(tokens * d, seed);
    for (std::size_t i = x.size() - 1; i > 0; --i) x[i] += 0.5f * x[i - 1];
    std::vector<float> h(static_cast<std::size_t>(d * d));
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j)
        for (std::int64_t t = 0; t < tokens; ++t)
          h[static_cast<std::size_t>(i * d + j)] +=
              x[static_cast<std::size_t>(t * d + i)] * x[static_cast<std::size_t>(t * d + j)];
    return h;
  }
  std::vector<float> limits(const std::vector<float>& w, std::int64_t rows, std::int64_t d,
                            const std::vector<float>& h, std::int64_t group_size,
                            const GridOptions& grid) {
    const Array<float> limit(rows, d / group_size, stream);
    search_clip(upload_as(w, rows, d), upload_as(h, d, d), group_size, grid, limit, stream);
    return download(limit.view);
  }
};

// The limit is one of the ten, and in double precision no other is better.
TEST_P(ClipSearchTest, NoLimitIsBetter) {
  for (const std::int64_t group_size : {32, 64, 96, 128})
    for (const GridOptions grid :
         {GridOptions{4, false}, GridOptions{4, true}, GridOptions{3, false}}) {
      const std::int64_t rows = 67;
      const std::int64_t d = 2 * group_size;
      std::vector<float> w = random_normal(rows * d, 8);
      std::fill(w.begin(), w.begin() + d, 0.0f);
      const std::vector<float> h = make_hessian(d, 9);
      const std::vector<float> got = limits(w, rows, d, h, group_size, grid);
      int clipped = 0;
      for (std::int64_t r = 1; r < rows; ++r)
        for (std::int64_t g = 0; g < 2; ++g) {
          const auto begin = w.begin() + r * d + g * group_size;
          const std::vector<double> group(begin, begin + group_size);
          std::vector<double> block;
          for (std::int64_t i = 0; i < group_size; ++i)
            for (std::int64_t j = 0; j < group_size; ++j)
              block.push_back(
                  h[static_cast<std::size_t>((g * group_size + i) * d + g * group_size + j)]);
          float largest = 0.0f;
          for (const double x : group) largest = std::max(largest, static_cast<float>(std::abs(x)));
          const float limit = got[static_cast<std::size_t>(r * 2 + g)];
          const double chosen =
              reference::clipped_error(group, limit, block, grid.bits, grid.symmetric);
          bool known = false;
          for (int step = 0; step < clip_steps; ++step) {
            const float candidate = largest * (1.0f - static_cast<float>(step) / 20.0f);
            known = known || candidate == limit;
            ASSERT_LE(chosen, 1.001 * reference::clipped_error(group, candidate, block, grid.bits,
                                                               grid.symmetric))
                << "row " << r << ", group " << g << ", step " << step;
          }
          ASSERT_TRUE(known);
          clipped += limit < largest ? 1 : 0;
        }
      EXPECT_GT(clipped, rows / 4);  // the test sees both outcomes
      EXPECT_LT(clipped, 2 * rows);
      EXPECT_EQ(got[0], 0.0f);
    }
}

// An outlier on a column that no token uses is cut off as far as it goes; on a column that counts
// it is kept.
TEST_P(ClipSearchTest, OutliersAreCutWhereTheyDoNotCount) {
  const std::int64_t d = 64;
  std::vector<float> w(static_cast<std::size_t>(d));
  for (std::size_t c = 0; c < w.size(); ++c) w[c] = 0.37f * static_cast<float>(c % 7) - 1.0f;
  w[10] = 8.0f;
  for (const bool counts : {true, false}) {
    std::vector<float> h(static_cast<std::size_t>(d * d));
    for (std::int64_t i = 0; i < d; ++i)
      h[static_cast<std::size_t>(i * d + i)] = i == 10 ? (counts ? 100.0f : 0.0f) : 1.0f;
    const float limit = limits(w, 1, d, h, d, {4, false}).front();
    if (counts)
      EXPECT_GT(limit, 7.0f);
    else
      EXPECT_LT(limit, 5.0f);
  }
}

TEST_P(ClipSearchTest, ClampGroups) {
  const std::int64_t rows = 5;
  const std::int64_t d = 96;
  std::vector<float> w = random_normal(rows * d, 11);
  std::vector<float> limit = random_normal(rows * 3, 12);
  for (float& x : limit) x = std::abs(x);
  const Array<float> device = upload_as(w, rows, d);
  clamp_groups(device, upload_as(limit, rows, 3), stream);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = std::clamp(w[i], -limit[i / 32], limit[i / 32]);
  EXPECT_EQ(download(device.view), w);
}

TEST_P(ClipSearchTest, WrongShapes) {
  const Array<float> h(512, 512, stream);
  const Array<float> w(2, 512, stream);
  EXPECT_THROW(search_clip(w, h, 256, {}, Array<float>(2, 2, stream), stream),
               std::invalid_argument);
  EXPECT_THROW(search_clip(w, h, 96, {}, Array<float>(2, 5, stream), stream),
               std::invalid_argument);
  EXPECT_THROW(search_clip(w, h, 128, {}, Array<float>(2, 3, stream), stream),
               std::invalid_argument);
  search_clip(w.view.row_range(0, 0), h, 128, {}, Array<float>(0, 4, stream), stream);
}

INSTANTIATE_TEST_SUITE_P(Backends, ClipSearchTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
