#include "stages/column_order.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace qpipe {
namespace {

using Perm = std::vector<std::int32_t>;

TEST(ColumnOrder, ActOrderIsDescendingAndStable) {
  EXPECT_EQ(act_order({1.0f, 3.0f, 0.0f, 3.0f, 2.0f, 0.0f}), (Perm{1, 3, 4, 0, 2, 5}));
  EXPECT_EQ(act_order({}), Perm{});
}

TEST(ColumnOrder, GroupAwareKeepsGroupsTogether) {
  // Largest elements of the groups: 4, 9, 4; sums 8, 9, 5.
  EXPECT_EQ(group_aware_order({4, 1, 2, 1, 0, 9, 0, 0, 1, 0, 4, 0}, 4),
            (Perm{5, 4, 6, 7, 0, 2, 1, 3, 10, 8, 9, 11}));
  EXPECT_EQ(group_aware_order({1, 2, 3}, 3), (Perm{2, 1, 0}));
  EXPECT_EQ(group_aware_order({1, 2, 3}, 1), (Perm{2, 1, 0}));
}

TEST(ColumnOrder, GroupSizeMustDivide) {
  EXPECT_THROW(group_aware_order({1, 2, 3}, 2), std::invalid_argument);
  EXPECT_THROW(group_aware_order({1, 2, 3}, 0), std::invalid_argument);
}

}  // namespace
}  // namespace qpipe
