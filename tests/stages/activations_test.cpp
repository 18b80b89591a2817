// Which blocks stand for the whole calibration set.
#include "stages/activations.h"

#include <gtest/gtest.h>

#include <numeric>

namespace qpipe {
namespace {

std::vector<std::int64_t> sampled(const Blocking& blocking, std::int64_t tokens) {
  std::vector<std::int64_t> blocks;
  for (std::int64_t b = 0; b < blocking.blocks(); ++b)
    if (is_sampled(blocking, b, tokens)) blocks.push_back(b);
  EXPECT_EQ(
      sampled_tokens(blocking, tokens),
      std::accumulate(blocks.begin(), blocks.end(), std::int64_t{0}, [&](std::int64_t sum, auto b) {
        return sum + blocking.block_size(b) * blocking.seqlen;
      }));
  return blocks;
}

TEST(IsSampled, BlocksAreEvenlySpacedAndHoldTheTokensAskedFor) {
  const Blocking blocking{128, 2048, 8};  // 16 blocks of 16,384 tokens
  using Blocks = std::vector<std::int64_t>;
  EXPECT_EQ(sampled(blocking, 65536), (Blocks{3, 7, 11, 15}));
  EXPECT_EQ(sampled(blocking, 3 * 16384), (Blocks{5, 10, 15}));
  EXPECT_EQ(sampled(blocking, 1), (Blocks{15}));
  EXPECT_EQ(sampled(blocking, 0).size(), 16U);
  EXPECT_EQ(sampled(blocking, std::int64_t{1} << 40).size(), 16U);
  EXPECT_EQ(sampled({1, 7, 8}, 65536), (Blocks{0}));  // one short block
  EXPECT_TRUE(sampled({0, 7, 1}, 65536).empty());
}

}  // namespace
}  // namespace qpipe
