// The links of a rank in the ring of teams.
#pragma once

#include <memory>

#include "launch/link.h"
#include "launch/teams.h"

namespace qpipe {

// To and from the rank at the same position of the next and the previous team. Both empty for one team.
struct Ring {
  std::unique_ptr<Link> from_previous;
  std::unique_ptr<Link> to_next;
};

// Collective over `comm`, whose size is teams · ranks_of_team.
Ring make_ring(Comm& comm, const Teams& teams, Stream& stream);

}  // namespace qpipe
