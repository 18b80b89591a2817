#include "stages/solvers.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <future>
#include <semaphore>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "kernels/copy_queue.h"

namespace qpipe {

struct Solvers::Worker {
  explicit Worker(const Stream& main) : stream(Stream::beside(main)), alone(*stream), taken(main) {}

  std::unique_ptr<Stream> stream;
  Comm alone;
  Event taken;  // behind the team's last use of this worker's memory
};

Solvers::Solvers(Stream& stream, int most)
    : stream_(stream), most_(static_cast<std::size_t>(std::max(1, most))) {}

Solvers::~Solvers() = default;

Solvers::Worker& Solvers::worker(std::size_t i) {
  while (workers_.size() <= i) workers_.push_back(std::make_unique<Worker>(stream_));
  return *workers_[i];
}

namespace {

using Linears = std::vector<QuantizedLinear>;

}  // namespace

struct SolvedGroups::State {
  struct Solved {
    Linears linears;
    Solvers::Worker* worker = nullptr;
  };

  State(std::vector<GroupToSolve> all, Solvers& solvers, Comm& comm_, Stream& stream_)
      : groups(std::move(all)), comm(comm_), stream(stream_), alone(stream_) {
    for (std::size_t i = 0; i < groups.size(); ++i)
      if (groups[i].owner == comm.rank()) mine.push_back(i);
    const std::size_t threads = std::min(solvers.most_, mine.size());
    if (threads < 2) return;
    stream.synchronize();  // what the groups read is there for every queue
    solved.resize(mine.size());
    const int cores = std::max(1, omp_get_max_threads() / static_cast<int>(threads));
    room.release(groups_in_work(static_cast<int>(threads)));
    for (std::size_t i = 0; i < threads; ++i)
      running.push_back(std::async(std::launch::async, [this, cores, &own = solvers.worker(i)] {
        own.stream->adopt_thread();
        omp_set_num_threads(cores);  // of the kernels on the CPU backend
        solve_some(own);
      }));
  }

  ~State() {
    stop = true;
    room.release(static_cast<std::ptrdiff_t>(running.size()));
    for (std::future<void>& thread : running) thread.wait();
  }

  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void solve_some(Solvers::Worker& worker) {
    for (;;) {
      room.acquire();
      if (stop) return;
      const std::size_t k = begun++;
      if (k >= mine.size()) {
        room.release();  // for another thread, which ends, too
        return;
      }
      try {
        Linears linears = groups[mine[k]].solve(worker.alone, *worker.stream);
        worker.stream->synchronize();
        solved[k].set_value({std::move(linears), &worker});
      } catch (...) {
        solved[k].set_exception(std::current_exception());
      }
    }
  }

  // Of the group that is next, which is this rank's; on the team's stream.
  Linears take_own() {
    if (running.empty()) return groups[at].solve(alone, stream);
    Solved own = solved[taken++].get_future().get();
    Linears linears = std::move(own.linears);
    std::vector<Buffer> left;  // the worker's memory
    const auto bring = [&](auto& array) {
      std::remove_reference_t<decltype(array)> copy(array.view.rows, array.view.cols, stream);
      copy_on_device(copy.view.data, array.view.data, array.memory.bytes(), stream);
      std::swap(array, copy);
      left.push_back(std::move(copy.memory));
    };
    for (QuantizedLinear& linear : linears) {
      bring(linear.code);
      bring(linear.scale);
      bring(linear.zero);
    }
    // It is free behind the copies.
    record(own.worker->taken, stream);
    wait_for(own.worker->taken, *own.worker->stream);
    left.clear();
    room.release();
    return linears;
  }

  std::vector<GroupToSolve> groups;
  Comm& comm;
  Stream& stream;
  Comm alone;  // of the team's stream
  std::vector<std::size_t> mine;
  std::vector<std::promise<Solved>> solved;  // of `mine`
  std::atomic<std::size_t> begun = 0;        // of `mine`
  std::atomic<bool> stop = false;
  std::counting_semaphore<> room{0};
  std::vector<std::future<void>> running;
  std::size_t taken = 0;  // of `mine`
  std::size_t at = 0;
};

SolvedGroups::SolvedGroups(std::vector<GroupToSolve> groups, Solvers& solvers, Comm& comm,
                           Stream& stream)
    : state_(std::make_unique<State>(std::move(groups), solvers, comm, stream)) {}

SolvedGroups::~SolvedGroups() = default;

std::vector<QuantizedLinear> SolvedGroups::next() {
  State& s = *state_;
  const int owner = s.groups[s.at].owner;
  const bool own = owner == s.comm.rank();
  Linears linears;
  std::string fault;
  if (own) try {
      linears = s.take_own();
    } catch (const std::domain_error& error) {
      fault = error.what();
    }
  if (const std::string said = s.comm.broadcast(fault, owner); !said.empty())
    throw std::domain_error(said);
  if (!own) linears = s.groups[s.at].unsolved(s.stream);
  broadcast_solved(linears, owner, s.comm, s.stream);
  s.groups[s.at] = {};  // what its functions hold is free
  ++s.at;
  return linears;
}

}  // namespace qpipe
