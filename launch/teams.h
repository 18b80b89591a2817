// Teams in a ring: N = P · D ranks. Team t is the ranks t·D … t·D + D − 1; layers are dealt to the
// teams round-robin.
#pragma once

#include <cstdint>

namespace qpipe {

struct Teams {
  int teams = 1;          // P
  int ranks_of_team = 1;  // D

  int ranks() const { return teams * ranks_of_team; }
  int team_of_rank(int rank) const { return rank / ranks_of_team; }
  int position_of_rank(int rank) const { return rank % ranks_of_team; }  // inside its team
  int rank_at(int team, int position) const { return team * ranks_of_team + position; }
  int team_of_layer(std::int64_t layer) const { return static_cast<int>(layer % teams); }
  int next(int team) const { return (team + 1) % teams; }
  int previous(int team) const { return (team + teams - 1) % teams; }
};

// P = wanted, or for wanted = 0 the largest divisor of `ranks` that is at most `layers` when layers
// are independent of each other, else 1. Throws std::invalid_argument when `wanted` does not divide
// `ranks`.
Teams choose_teams(int ranks, std::int64_t layers, bool independent_layers, int wanted);

}  // namespace qpipe
