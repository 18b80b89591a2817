#include "pipeline/layers/cast.h"

#include <gtest/gtest.h>

namespace qpipe {
namespace {

TEST(CastWorkers, FollowCoresAndDeviceMemory) {
  const std::size_t gib = std::size_t{1} << 30;
  EXPECT_EQ(cast_workers(1, 1), 4u);
  EXPECT_EQ(cast_workers(6, 1), 6u);
  EXPECT_EQ(cast_workers(128, 1), 8u);
  EXPECT_EQ(cast_workers(8, 0), 8u);
  EXPECT_EQ(cast_workers(8, gib), 4u);
  EXPECT_EQ(cast_workers(8, 3 * gib), 1u);
  EXPECT_EQ(cast_workers(8, 100 * gib), 1u);
  for (std::size_t bytes = 1; bytes < 8 * gib; bytes *= 3)
    EXPECT_TRUE(cast_workers(64, bytes) * bytes <= 4 * gib || cast_workers(64, bytes) == 1);
}

}  // namespace
}  // namespace qpipe
