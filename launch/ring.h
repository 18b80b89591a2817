// A rank's place in the ring of the ranks that have the same position in every team: device buffers
// go from a team to the next one.
//
// All exchange in steps. A rank's steps begin in order, each when the rank's stream has done what
// was queued before and when the step before is over; a step ends when both neighbours have done
// their part of it. So nothing that a rank waits for, be it in a library or in the driver (which
// loads a kernel only when the device is idle), depends on the rank's own later work: ranks cannot
// wait for each other for ever. One NCCL communicator for the whole ring, with a stream of its own,
// so that transfers run beside the computation; MPI on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "launch/comm.h"
#include "launch/teams.h"

namespace qpipe {

class Ring {
 public:
  // Collective over `comm`, whose size is teams · ranks_of_team, with more than one team. `comm`
  // and `stream` outlive the ring.
  Ring(Comm& comm, const Teams& teams, Stream& stream);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  struct Outgoing {
    const void* data = nullptr;
    std::size_t bytes = 0;  // 0: nothing in this step
  };
  struct Incoming {
    void* data = nullptr;
    std::size_t bytes = 0;  // as many as the previous team sends in this step
  };

  // Starts the next step. The memory belongs to the ring until the step is over; that of a step
  // before may be used again at once.
  void exchange(const Outgoing& to_next, const Incoming& from_previous, Stream& stream);
  // Returns when no more than `steps` of the latest steps are under way. Bounded: throws
  // std::runtime_error naming both neighbours.
  void wait(std::size_t steps);

  std::size_t under_way() const;
  std::int64_t bytes() const;  // sent and received, of all steps so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qpipe
