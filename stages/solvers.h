// Groups solved at the same time: dealt to the ranks of a team, and on each of them to threads with
// queues of their own on the device. The factor and the sweep of one expert, one column after the
// other, leave most of a GPU idle; many beside one another fill it.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "launch/comm.h"
#include "stages/solve.h"

namespace qpipe {

// A rank's threads' queues, made when they are first needed and kept: each has 32 MiB of cuBLAS's.
class Solvers {
 public:
  // most: groups of this rank at a time; 1: in the calling thread, on its stream. The stream
  // outlives them.
  Solvers(Stream& stream, int most);
  ~Solvers();
  Solvers(const Solvers&) = delete;
  Solvers& operator=(const Solvers&) = delete;

  // Device memory of the libraries for a queue, outside of Buffers.
  static constexpr std::int64_t library_device_bytes = std::int64_t{48} << 20;

 private:
  friend class SolvedGroups;
  struct Worker;
  Worker& worker(std::size_t i);

  Stream& stream_;
  std::size_t most_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

// How many groups of a rank that are solved, or being solved, may wait to be taken.
constexpr int groups_in_work(int solvers) { return 3 * solvers; }

// Who needs codes, scales and zeros of a group once its `solve` has returned; what is known of it
// on the host (outcome_of()) all ranks get.
enum class CodesFor { nobody, other_ranks, all_ranks };

struct GroupToSolve {
  // Its linears as solve() gives them, with the Comm of one rank; from any thread, on that thread's
  // stream. What it reads is done on the team's stream.
  std::function<std::vector<QuantizedLinear>(Comm& alone, Stream& stream)> solve;
  // The same linears before any row is solved (outline_of()).
  std::function<std::vector<QuantizedLinear>()> outline;
  int owner = 0;  // the rank that solves it
};

// Experts of a wave have equal shapes, and go around.
constexpr int owner_of_group(std::size_t number, int ranks) {
  return static_cast<int>(number % static_cast<std::size_t>(ranks));
}

// Solved groups that ranks give to one another at once, and so many wait on each: an exchange takes
// about as long for one.
constexpr std::size_t groups_exchanged(int ranks, int solvers) {
  constexpr int about = 16;
  if (ranks == 1 || solvers < 2) return 1;
  return static_cast<std::size_t>(std::max(ranks, about / ranks * ranks));
}

// All groups, solved, on every rank, in their order.
class SolvedGroups {
 public:
  // Begins to solve. All ranks of comm pass the same groups and codes_for.
  SolvedGroups(std::vector<GroupToSolve> groups, CodesFor codes_for, Solvers& solvers, Comm& comm,
               Stream& stream);
  // Those in work are solved to their end, the others are not begun.
  ~SolvedGroups();
  SolvedGroups(const SolvedGroups&) = delete;
  SolvedGroups& operator=(const SolvedGroups&) = delete;

  // The next group's linears; memory and work on the team's stream, or views without memory where
  // this rank does not need the codes. Collective. Throws what its `solve` has thrown: a
  // std::domain_error on all ranks, anything else on its owner.
  std::vector<QuantizedLinear> next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qpipe
