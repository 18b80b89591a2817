#include "launch/share.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>

namespace qpipe {
namespace {

TEST(ContiguousShare, KnownRuns) {
  // 10 blocks over 4 ranks: 3 3 2 2.
  const std::vector<std::pair<std::int64_t, std::int64_t>> expected{{0, 3}, {3, 3}, {6, 2}, {8, 2}};
  for (int rank = 0; rank < 4; ++rank) {
    const RowRange run = contiguous_share(10, rank, 4);
    EXPECT_EQ(run.begin, expected[static_cast<std::size_t>(rank)].first);
    EXPECT_EQ(run.count, expected[static_cast<std::size_t>(rank)].second);
  }
}

TEST(ContiguousShare, CoversEveryBlockOnceInOrder) {
  for (std::int64_t blocks = 0; blocks <= 40; ++blocks)
    for (int ranks = 1; ranks <= 17; ++ranks) {
      std::int64_t next = 0;
      std::int64_t previous = std::numeric_limits<std::int64_t>::max();
      for (int rank = 0; rank < ranks; ++rank) {
        const RowRange run = contiguous_share(blocks, rank, ranks);
        EXPECT_EQ(run.begin, next);
        EXPECT_LE(run.count, previous);  // earlier ranks own the larger runs
        EXPECT_GE(run.count, blocks / ranks);
        EXPECT_LE(run.count, (blocks + ranks - 1) / ranks);
        next += run.count;
        previous = run.count;
      }
      EXPECT_EQ(next, blocks);
    }
}

TEST(ContiguousShare, RefusesWhatCannotBe) {
  EXPECT_THROW(contiguous_share(4, 2, 2), std::invalid_argument);
  EXPECT_THROW(contiguous_share(4, -1, 2), std::invalid_argument);
  EXPECT_THROW(contiguous_share(4, 0, 0), std::invalid_argument);
  EXPECT_THROW(contiguous_share(-1, 0, 1), std::invalid_argument);
}

// Every row has one owner; owners begin and end at block boundaries; ranks own runs of blocks in
// the order of all linears' blocks.
void expect_partition(const std::vector<std::int64_t>& rows, std::int64_t block, int ranks) {
  const auto shares = share_rows(rows, block, ranks);
  ASSERT_EQ(shares.size(), rows.size());
  std::vector<std::int64_t> blocks_of_rank(static_cast<std::size_t>(ranks), 0);
  int last_owner = 0;
  for (std::size_t linear = 0; linear < rows.size(); ++linear) {
    ASSERT_EQ(shares[linear].size(), static_cast<std::size_t>(ranks));
    std::int64_t next = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const RowRange run = shares[linear][static_cast<std::size_t>(rank)];
      EXPECT_GE(run.count, 0);
      EXPECT_GE(run.begin, 0);
      EXPECT_LE(run.begin + run.count, rows[linear]);
      if (run.count == 0) continue;
      EXPECT_EQ(run.begin, next);
      EXPECT_EQ(run.begin % block, 0);
      next = run.begin + run.count;
      EXPECT_TRUE(next % block == 0 || next == rows[linear]);
      EXPECT_GE(rank, last_owner);
      last_owner = rank;
      blocks_of_rank[static_cast<std::size_t>(rank)] += (run.count + block - 1) / block;
    }
    EXPECT_EQ(next, rows[linear]);
  }
  const auto [least, most] = std::minmax_element(blocks_of_rank.begin(), blocks_of_rank.end());
  EXPECT_LE(*most - *least, 1);
}

TEST(ShareRows, PartitionsRaggedAndEmptyLinears) {
  const std::vector<std::vector<std::int64_t>> cases{{},
                                                     {0},
                                                     {1},
                                                     {64},
                                                     {65, 63},
                                                     {100, 1, 7},
                                                     {0, 128, 0},
                                                     {64, 64, 64},
                                                     {4096, 11, 130},
                                                     {1, 1, 1, 1, 1},
                                                     {576, 192, 192},
                                                     {1536, 1536},
                                                     {63, 64, 65, 127, 128, 129}};
  for (const auto& rows : cases)
    for (const std::int64_t block : {1, 7, 64, 1000})
      for (int ranks = 1; ranks <= 9; ++ranks) {
        SCOPED_TRACE(testing::PrintToString(rows) + " block " + std::to_string(block) + " ranks " +
                     std::to_string(ranks));
        expect_partition(rows, block, ranks);
      }
}

TEST(ShareRows, KnownShares) {
  // Blocks of 10: linear 0 has 0‥3 (the last with 5 rows), linear 1 has 4 and 5. Three ranks:
  // blocks 0-1, 2-3, 4-5.
  const auto shares = share_rows({35, 20}, 10, 3);
  const auto expect_run = [&](std::size_t linear, std::size_t rank, std::int64_t begin,
                              std::int64_t count) {
    EXPECT_EQ(shares[linear][rank].count, count);
    if (count > 0) {
      EXPECT_EQ(shares[linear][rank].begin, begin);
    }
  };
  expect_run(0, 0, 0, 20);
  expect_run(0, 1, 20, 15);
  expect_run(0, 2, 0, 0);
  expect_run(1, 0, 0, 0);
  expect_run(1, 1, 0, 0);
  expect_run(1, 2, 0, 20);
}

TEST(ShareRows, RefusesWhatCannotBe) {
  EXPECT_THROW(share_rows({4}, 0, 1), std::invalid_argument);
  EXPECT_THROW(share_rows({-4}, 2, 1), std::invalid_argument);
  EXPECT_THROW(share_rows({4}, 2, 0), std::invalid_argument);
}

double largest_load(const std::vector<double>& costs, const std::vector<int>& owners, int ranks) {
  std::vector<double> load(static_cast<std::size_t>(ranks), 0.0);
  for (std::size_t task = 0; task < costs.size(); ++task)
    load[static_cast<std::size_t>(owners[task])] += costs[task];
  return *std::max_element(load.begin(), load.end());
}

// The best possible largest load, by trying every assignment.
double best_load(const std::vector<double>& costs, int ranks) {
  std::vector<int> owners(costs.size(), 0);
  double best = std::numeric_limits<double>::infinity();
  for (;;) {
    best = std::min(best, largest_load(costs, owners, ranks));
    std::size_t task = 0;
    while (task < owners.size() && ++owners[task] == ranks) owners[task++] = 0;
    if (task == owners.size()) return best;
  }
}

TEST(ShareByCost, WithinFourThirdsOfTheBest) {
  // Graham's bound of longest-first: (4/3 − 1/(3·ranks)) of the best largest load. The list `worst`
  // reaches it.
  std::mt19937 generator(3);
  std::uniform_int_distribution<int> cost(1, 30);
  for (int round = 0; round < 60; ++round) {
    std::vector<double> costs(static_cast<std::size_t>(round % 8 + 1));
    for (double& value : costs) value = cost(generator);
    for (int ranks = 1; ranks <= 4; ++ranks) {
      const double bound = (4.0 / 3.0 - 1.0 / (3.0 * ranks)) * best_load(costs, ranks);
      EXPECT_LE(largest_load(costs, share_by_cost(costs, ranks), ranks), bound + 1e-9)
          << testing::PrintToString(costs) << " ranks " << ranks;
    }
  }
  const std::vector<double> worst{5, 5, 4, 4, 3, 3, 3};  // best 9, longest-first 11 = 11/9 of it
  EXPECT_EQ(best_load(worst, 3), 9.0);
  EXPECT_EQ(largest_load(worst, share_by_cost(worst, 3), 3), 11.0);
}

TEST(ShareByCost, TiesGoToTheLowerRankAndTask) {
  EXPECT_EQ(share_by_cost({1, 1, 1, 1, 1}, 3), (std::vector<int>{0, 1, 2, 0, 1}));
  EXPECT_EQ(share_by_cost({1, 8, 1, 2}, 2), (std::vector<int>{1, 0, 1, 1}));
  EXPECT_EQ(share_by_cost({}, 2), std::vector<int>{});
  EXPECT_EQ(share_by_cost({3, 2}, 5), (std::vector<int>{0, 1}));
  EXPECT_EQ(share_by_cost({3, 2, 1}, 1), (std::vector<int>{0, 0, 0}));
}

TEST(ShareByCost, RefusesCostsWithoutOrder) {
  EXPECT_THROW(share_by_cost({1.0, std::numeric_limits<double>::quiet_NaN()}, 2),
               std::invalid_argument);
  EXPECT_THROW(share_by_cost({std::numeric_limits<double>::infinity()}, 2), std::invalid_argument);
  EXPECT_THROW(share_by_cost({-1.0}, 2), std::invalid_argument);
  EXPECT_THROW(share_by_cost({1.0}, 0), std::invalid_argument);
}

}  // namespace
}  // namespace qpipe
