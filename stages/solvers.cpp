#include "stages/solvers.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <exception>
#include <future>
#include <semaphore>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "kernels/copy_queue.h"
#include "stages/transfer.h"

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

// Texts one after the other, each behind its length.
void put(std::string& to, std::string_view text) {
  const std::uint64_t size = text.size();
  to.append(reinterpret_cast<const char*>(&size), sizeof size);
  to.append(text);
}

std::string_view take(std::string_view& from) {
  std::uint64_t size = 0;
  std::memcpy(&size, from.data(), sizeof size);
  const std::string_view text = from.substr(sizeof size, size);
  from.remove_prefix(sizeof size + size);
  return text;
}

}  // namespace

struct SolvedGroups::State {
  struct Solved {
    Linears linears;
    Solvers::Worker* worker = nullptr;
  };

  State(std::vector<GroupToSolve> all, CodesFor codes_for_, Solvers& solvers, Comm& comm_,
        Stream& stream_)
      : groups(std::move(all)),
        codes_for(codes_for_ == CodesFor::other_ranks && comm_.size() == 1 ? CodesFor::nobody
                                                                           : codes_for_),
        comm(comm_),
        stream(stream_),
        alone(stream_),
        at_once(groups_exchanged(comm_.size(), static_cast<int>(solvers.most_))) {
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
    stream.release_kept();
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
        if (codes_for == CodesFor::nobody) forget_codes(linears);
        worker.stream->synchronize();
        solved[k].set_value({std::move(linears), &worker});
      } catch (...) {
        solved[k].set_exception(std::current_exception());
      }
    }
  }

  // Of group number `index`, the next of this rank's; in memory of the team's stream, there or
  // where it says nothing elsewhere.
  Linears take_own(std::size_t index, SharedPlace there) {
    if (running.empty()) {
      Linears linears = groups[index].solve(alone, stream);
      if (codes_for == CodesFor::nobody)
        forget_codes(linears);
      else if (there.memory)
        move_to(there, linears, stream);
      return linears;
    }
    Solved own = solved[taken++].get_future().get();
    if (codes_for != CodesFor::nobody) {
      if (!there.memory) there.memory = std::make_shared<Buffer>(shared_bytes(own.linears), stream);
      std::vector<Buffer> left = move_to(there, own.linears, stream);
      // The worker's memory is free behind the copies.
      record(own.worker->taken, stream);
      wait_for(own.worker->taken, *own.worker->stream);
      left.clear();
    }
    room.release();
    return std::move(own.linears);
  }

  // A group as its owner found it.
  struct Found {
    Linears linears;
    std::string fault;  // of the data
  };

  // Of the next group of this rank's.
  Found find_own(std::size_t index, const SharedPlace& there) {
    try {
      return {take_own(index, there), {}};
    } catch (const std::domain_error& error) {
      return {{}, error.what()};
    }
  }

  // Of the groups up to `end`: places in one memory, a rank's one behind the other, and what of it
  // each rank has.
  struct Exchange {
    std::shared_ptr<Buffer> memory;
    std::vector<SharedPlace> places;
    std::vector<Piece> messages;
  };

  Exchange begin_exchange(std::size_t end, std::vector<Found>& found) {
    Exchange result;
    result.places.resize(found.size());
    std::size_t bytes = 0;
    for (int rank = 0; rank < comm.size(); ++rank) {
      const std::size_t begin = bytes;
      for (std::size_t i = at; i < end; ++i) {
        if (groups[i].owner != rank) continue;
        result.places[i - at].offset = bytes;
        bytes += shared_bytes(found[i - at].linears);
      }
      result.messages.push_back({nullptr, bytes - begin, rank});
    }
    result.memory = std::make_shared<Buffer>(bytes, stream);
    for (SharedPlace& place : result.places) place.memory = result.memory;
    auto* data = static_cast<unsigned char*>(result.memory->data());
    for (Piece& message : result.messages) {
      message.data = data;
      data += message.bytes;
    }
    return result;
  }

  // The next groups, on every rank. What a rank has found is one message to all others.
  void exchange() {
    const std::size_t end = std::min(groups.size(), at + at_once);
    if (comm.size() == 1) {
      for (std::size_t i = at; i < end; ++i) ready.push_back(find_own(i, {}));
      return;
    }
    std::vector<Found> found(end - at);
    for (std::size_t i = at; i < end; ++i) found[i - at].linears = groups[i].outline();
    Exchange all;
    if (codes_for == CodesFor::nobody)
      all.places.resize(found.size());
    else
      all = begin_exchange(end, found);
    std::string own;
    for (std::size_t i = at; i < end; ++i) {
      if (groups[i].owner != comm.rank()) continue;
      found[i - at] = find_own(i, all.places[i - at]);
      put(own, found[i - at].fault);
      put(own, outcome_of(found[i - at].linears));
    }
    const std::vector<std::string> told = comm.all_gather_texts(own);
    std::vector<std::string_view> by_rank(told.begin(), told.end());
    for (std::size_t i = at; i < end; ++i) {
      std::string_view& of_owner = by_rank[static_cast<std::size_t>(groups[i].owner)];
      Found& group = found[i - at];
      group.fault = take(of_owner);
      const std::string outcome(take(of_owner));
      if (groups[i].owner == comm.rank()) {
        if (codes_for == CodesFor::other_ranks) forget_codes(group.linears);
      } else if (group.fault.empty()) {
        set_outcome(outcome, group.linears);
        if (all.memory) place(group.linears, all.places[i - at]);
      }
    }
    if (all.memory) {
      comm.broadcast(all.messages, stream);
      upload_groups(found);
    }
    for (Found& group : found) ready.push_back(std::move(group));
  }

  // To which group columns belong, of all linears with codes, in one copy: a copy waits for the
  // stream.
  void upload_groups(std::vector<Found>& found) {
    std::vector<std::int32_t> all;
    const auto visit = [&](const auto& work) {
      for (Found& group : found)
        for (QuantizedLinear& q : group.linears)
          if (q.shared) work(q);
    };
    visit([&](QuantizedLinear& q) { all.insert(all.end(), q.group_of.begin(), q.group_of.end()); });
    const auto memory = std::make_shared<Array<std::int32_t>>(upload(all, stream));
    std::int64_t column = 0;
    visit([&](QuantizedLinear& q) {
      const auto columns = static_cast<std::int64_t>(q.group_of.size());
      q.group_of_on_device = {memory, memory->view.col_range(column, columns)};
      column += columns;
    });
  }

  std::vector<GroupToSolve> groups;
  CodesFor codes_for;
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
  std::size_t at_once;    // groups
  std::deque<Found> ready;
  std::size_t at = 0;  // the group that is next
};

SolvedGroups::SolvedGroups(std::vector<GroupToSolve> groups, CodesFor codes_for, Solvers& solvers,
                           Comm& comm, Stream& stream)
    : state_(std::make_unique<State>(std::move(groups), codes_for, solvers, comm, stream)) {}

SolvedGroups::~SolvedGroups() = default;

std::vector<QuantizedLinear> SolvedGroups::next() {
  State& s = *state_;
  if (s.ready.empty()) s.exchange();
  State::Found found = std::move(s.ready.front());
  s.ready.pop_front();
  if (!found.fault.empty()) throw std::domain_error(found.fault);
  s.groups[s.at] = {};  // what its functions hold is free
  ++s.at;
  return std::move(found.linears);
}

}  // namespace qpipe
