#include "launch/ring.h"

namespace qpipe {

namespace {
// Making a link takes both ranks. The links that leave even teams come first, then those that leave odd ones; in a ring of odd length the
// last team is even and has an even neighbour, so its link comes third. No rank has two links in one phase.
int phase_of(int team, int teams) {
  if (teams % 2 == 1 && team == teams - 1) return 2;
  return team % 2;
}
}  // namespace

Ring make_ring(Comm& comm, const Teams& teams, Stream& stream) {
  require(comm.size() == teams.teams * teams.ranks_of_team, "make_ring: ranks and teams do not fit");
  Ring ring;
  if (teams.teams == 1) return ring;
  const int team = teams.team_of_rank(comm.rank());
  const int position = teams.position_of_rank(comm.rank());
  const int previous = teams.previous(team);
  for (int phase = 0; phase < 3; ++phase) {
    if (phase_of(team, teams.teams) == phase)
      ring.to_next = std::make_unique<Link>(comm, comm.rank(), teams.rank_at(teams.next(team), position), stream);
    if (phase_of(previous, teams.teams) == phase)
      ring.from_previous = std::make_unique<Link>(comm, teams.rank_at(previous, position), comm.rank(), stream);
  }
  return ring;
}

}  // namespace qpipe
