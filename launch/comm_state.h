// What a Comm holds, for launch/ alone.
#pragma once

#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/stopwatch.h"
#include "launch/comm.h"
#include "launch/mpi_calls.h"
#include "launch/nccl_comm.h"

namespace qpipe {

struct DestroyNcclComm {
  void operator()(NcclComm* comm) const {
    if constexpr (has_cuda) cuda::destroy_nccl_comm(comm);
  }
};

struct Comm::State {
  Options options;
  MPI_Comm mpi = MPI_COMM_NULL;
  int rank = 0;
  int size = 1;
  int exceptions = std::uncaught_exceptions();
  bool shared_gpu = false;           // some GPU of the job serves several ranks
  bool failed = false;               // an operation did not finish: the ranks are no longer in step
  std::shared_ptr<NcclWaits> waits;  // for the GPU, where ranks meet on it: all Comms' of the job
  std::unique_ptr<NcclComm, DestroyNcclComm> nccl;
  Stream& stream;
  std::optional<Waiter> waiter_before;  // of the stream, which outlives the Comm
  Stopwatch watch;                      // of the operations on device buffers
  std::int64_t moved_bytes = 0;

  explicit State(Stream& own) : stream(own), watch(own) {}

  ~State() {
    nccl.reset();
    if (waiter_before) stream.set_waiter(*waiter_before);
    if (mpi != MPI_COMM_NULL && !failed && std::uncaught_exceptions() <= exceptions)
      MPI_Comm_free(&mpi);
  }

  // Around every operation: a Comm on which one failed takes no other.
  class Attempt {
   public:
    explicit Attempt(State& state) : state_(state) {
      if (state.failed)
        throw std::runtime_error(this_rank() +
                                 ": an earlier operation of this communicator failed");
      state.failed = true;
    }
    ~Attempt() {
      if (std::uncaught_exceptions() <= exceptions_) state_.failed = false;
    }
    Attempt(const Attempt&) = delete;
    Attempt& operator=(const Attempt&) = delete;

   private:
    State& state_;
    int exceptions_ = std::uncaught_exceptions();
  };

  MpiOperation operation(const std::string& name) const { return {mpi, name, options.timeout}; }

  std::vector<std::string> all_gather(const std::string& bytes, const char* name) {
    if (size == 1) return {bytes};
    Attempt attempt(*this);
    return all_gather_bytes(bytes, operation(name));
  }

  // The least value of all ranks.
  std::int64_t all_reduce_min(std::int64_t value, const char* name) {
    if (size == 1) return value;
    Attempt attempt(*this);
    all_reduce(&value, 1, sizeof(value), MPI_INT64_T, MPI_MIN, operation(name));
    return value;
  }

  // Around an operation on device buffers. The traffic is that of the Comm's own stream.
  class Transfer {
   public:
    Transfer(State& state, std::size_t bytes, const Stream& stream)
        : attempt_(state), state_(state), counts_(&stream == &state.stream) {
      if (!counts_) return;
      state.moved_bytes += static_cast<std::int64_t>(bytes);
      state.watch.start();
    }
    ~Transfer() noexcept(false) {
      if (counts_ && std::uncaught_exceptions() <= exceptions_) state_.watch.stop();
    }
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;

   private:
    Attempt attempt_;
    State& state_;
    bool counts_;
    int exceptions_ = std::uncaught_exceptions();
  };

  bool rank_exists(int other) const { return other >= 0 && other < size; }

  void learn_rank_and_size();
};

}  // namespace qpipe
