#include "launch/ring.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "launch/comm_state.h"
#include "launch/nccl_ring.h"

namespace qpipe {

namespace {

constexpr int tag = 1;  // Comm::gather uses 0

struct DestroyNcclRing {
  void operator()(NcclRing* ring) const {
    if constexpr (has_cuda) cuda::destroy_nccl_ring(ring);
  }
};

}  // namespace

struct Ring::State {
  std::string next;  // "rank 3", of the job
  std::string previous;
  std::unique_ptr<NcclRing, DestroyNcclRing>
      nccl;                       // its stream outlives the communicator that works on it
  std::optional<Comm> comm;       // of the ring: its ranks are the teams
  std::deque<std::string> steps;  // under way: what they do, for messages
  Requests requests;              // of the one step that is under way, on the CPU
  std::int64_t bytes = 0;

  bool on_cuda() const { return nccl != nullptr; }

  std::string describe(std::size_t to_next, std::size_t from_previous) const {
    return "exchange of hidden states: " + std::to_string(to_next) + " bytes to " + next + ", " +
           std::to_string(from_previous) + " bytes from " + previous;
  }

  void start(const Outgoing& out, const Incoming& in) {
    const int size = comm->size();
    const int to = (comm->rank() + 1) % size;
    const int from = (comm->rank() + size - 1) % size;
    MPI_Comm mpi = comm->state_->mpi;
    for (std::size_t begin = 0; begin < in.bytes; begin += mpi_chunk_bytes) {
      const std::size_t count = std::min(mpi_chunk_bytes, in.bytes - begin);
      void* copy = requests.copy_of(static_cast<char*>(in.data) + begin, count, true);
      check(MPI_Irecv(copy, static_cast<int>(count), MPI_BYTE, from, tag, mpi, requests.add()));
    }
    for (std::size_t begin = 0; begin < out.bytes; begin += mpi_chunk_bytes) {
      const std::size_t count = std::min(mpi_chunk_bytes, out.bytes - begin);
      const void* copy = requests.copy_of(static_cast<const char*>(out.data) + begin, count);
      check(MPI_Isend(copy, static_cast<int>(count), MPI_BYTE, to, tag, mpi, requests.add()));
    }
  }

  void finish_oldest() {
    if constexpr (has_cuda)
      if (on_cuda()) {
        cuda::ring_wait_oldest(*nccl, steps.front());
        return steps.pop_front();
      }
    requests.finish(steps.front(), comm->state_->options.timeout);
    steps.pop_front();
  }
};

Ring::Ring(Comm& comm, const Teams& teams, Stream& stream) : state_(std::make_unique<State>()) {
  require(comm.size() == teams.ranks() && teams.teams > 1, "Ring: ranks and teams do not fit");
  const int team = teams.team_of_rank(comm.rank());
  const int position = teams.position_of_rank(comm.rank());
  state_->next = "rank " + std::to_string(teams.rank_at(teams.next(team), position));
  state_->previous = "rank " + std::to_string(teams.rank_at(teams.previous(team), position));
  state_->comm.emplace(comm, position, stream);
  state_->comm->connect_ahead(stream);
  if constexpr (has_cuda)
    if (stream.on_cuda())
      state_->nccl.reset(
          cuda::create_nccl_ring(*state_->comm->state_->nccl, team, teams.teams, stream));
}

Ring::~Ring() = default;

void Ring::exchange(const Outgoing& to_next, const Incoming& from_previous, Stream& stream) {
  State& s = *state_;
  if (!s.on_cuda()) wait(0);
  s.steps.push_back(s.describe(to_next.bytes, from_previous.bytes));
  s.bytes += static_cast<std::int64_t>(to_next.bytes + from_previous.bytes);
  if constexpr (has_cuda)
    if (s.on_cuda())
      return cuda::ring_exchange(*s.nccl, to_next.data, to_next.bytes, from_previous.data,
                                 from_previous.bytes, stream);
  s.start(to_next, from_previous);
}

void Ring::wait(std::size_t steps) {
  while (state_->steps.size() > steps) state_->finish_oldest();
}

std::size_t Ring::under_way() const { return state_->steps.size(); }
std::int64_t Ring::bytes() const { return state_->bytes; }

}  // namespace qpipe
