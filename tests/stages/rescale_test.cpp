// Which blocks the exact search compares outputs on.
#include "stages/rescale.h"

#include <gtest/gtest.h>

namespace qpipe {
namespace {

std::vector<std::int64_t> searched(const Blocking& blocking, std::int64_t tokens) {
  std::vector<std::int64_t> blocks;
  for (std::int64_t b = 0; b < blocking.blocks(); ++b)
    if (is_searched(blocking, b, tokens)) blocks.push_back(b);
  return blocks;
}

TEST(IsSearched, BlocksAreEvenlySpacedAndHoldTheTokensAskedFor) {
  const Blocking blocking{128, 2048, 8};  // 16 blocks of 16,384 tokens
  using Blocks = std::vector<std::int64_t>;
  EXPECT_EQ(searched(blocking, 65536), (Blocks{3, 7, 11, 15}));
  EXPECT_EQ(searched(blocking, 3 * 16384), (Blocks{5, 10, 15}));
  EXPECT_EQ(searched(blocking, 1), (Blocks{15}));
  EXPECT_EQ(searched(blocking, 0).size(), 16U);
  EXPECT_EQ(searched(blocking, std::int64_t{1} << 40).size(), 16U);
  EXPECT_EQ(searched({1, 7, 8}, 65536), (Blocks{0}));  // one short block
  EXPECT_TRUE(searched({0, 7, 1}, 65536).empty());
}

}  // namespace
}  // namespace qpipe
