#include <gtest/gtest.h>

#include "launch/comm.h"
#include "launch/leave.h"

namespace qpipe {
namespace {

constexpr std::chrono::seconds long_enough{60};

TEST(Leave, TogetherWithTheSameCodeOnly) {
  const World me = world();
  EXPECT_GE(me.rank, 0);
  EXPECT_LT(me.rank, me.size);
  EXPECT_FALSE(me.host.empty());
  for (const int code : {65, 78}) EXPECT_TRUE(leave_together(code, long_enough));
  EXPECT_EQ(leave_together(me.rank == me.size - 1 ? 66 : 65, long_enough), me.size == 1);
  // A rank that rank 0 does not join gives up in time. Last: its message stays behind.
  if (me.rank > 0) {
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_FALSE(leave_together(65, std::chrono::milliseconds(200)));
    EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(200));
  }
}

}  // namespace
}  // namespace qpipe
