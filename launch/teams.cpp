#include "launch/teams.h"

#include <stdexcept>
#include <string>

namespace qpipe {

Teams choose_teams(int ranks, std::int64_t layers, bool independent_layers, int wanted) {
  if (ranks < 1 || layers < 1 || wanted < 0)
    throw std::invalid_argument("choose_teams: no ranks, no layers or a negative number of teams");
  if (wanted > 0) {
    if (ranks % wanted != 0)
      throw std::invalid_argument(std::to_string(wanted) + " teams do not divide " +
                                  std::to_string(ranks) + " ranks");
    return {wanted, ranks / wanted};
  }
  if (!independent_layers) return {1, ranks};
  int teams = ranks;
  while (teams > layers || ranks % teams != 0) --teams;
  return {teams, ranks / teams};
}

}  // namespace qpipe
