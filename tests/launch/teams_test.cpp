#include "launch/teams.h"

#include <gtest/gtest.h>

#include <set>
#include <stdexcept>

namespace qpipe {
namespace {

TEST(Teams, IndependentLayersGiveAsManyTeamsAsDivideTheRanks) {
  const Teams ring = choose_teams(8, 32, true, 0);
  EXPECT_EQ(ring.teams, 8);
  EXPECT_EQ(ring.ranks_of_team, 1);
  const Teams few_layers = choose_teams(8, 3, true, 0);
  EXPECT_EQ(few_layers.teams, 2);  // of 1, 2, 4, 8
  EXPECT_EQ(few_layers.ranks_of_team, 4);
  EXPECT_EQ(choose_teams(7, 5, true, 0).teams, 1);
}

TEST(Teams, LayersThatWaitForEachOtherGiveOneTeam) {
  EXPECT_EQ(choose_teams(8, 32, false, 0).teams, 1);
  EXPECT_EQ(choose_teams(8, 32, false, 0).ranks_of_team, 8);
}

TEST(Teams, AWishIsFulfilledOrRefused) {
  EXPECT_EQ(choose_teams(6, 32, false, 3).ranks_of_team, 2);
  EXPECT_THROW(choose_teams(6, 32, true, 4), std::invalid_argument);
  EXPECT_THROW(choose_teams(0, 32, true, 0), std::invalid_argument);
  EXPECT_THROW(choose_teams(4, 0, true, 0), std::invalid_argument);
}

TEST(Teams, EveryRankHasOnePlaceAndEveryLayerOneTeam) {
  const Teams teams{3, 2};
  std::set<std::pair<int, int>> places;
  for (int rank = 0; rank < 6; ++rank) {
    places.emplace(teams.team_of_rank(rank), teams.position_of_rank(rank));
    EXPECT_EQ(teams.rank_at(teams.team_of_rank(rank), teams.position_of_rank(rank)), rank);
  }
  EXPECT_EQ(places.size(), 6u);
  EXPECT_EQ(teams.team_of_layer(7), 1);
  EXPECT_EQ(teams.next(2), 0);
  EXPECT_EQ(teams.previous(0), 2);
}

}  // namespace
}  // namespace qpipe
