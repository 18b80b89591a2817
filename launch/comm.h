// Collectives of all ranks, or of one team of them. Device buffers travel by NCCL, host buffers and
// the CPU backend by MPI.
//
// Every wait is bounded: a collective that does not finish in `timeout`, or a rank that fails, ends
// the job with one line that names rank, host and operation. Sums are of integers only (exact in
// any order); floats are only maximised or copied, so no result depends on the number of ranks.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/stream.h"
#include "launch/piece.h"

namespace qpipe {

// MPI_Init_thread … MPI_Finalize around main, for a process that a launcher has started. Without it
// everything here works as a single rank, and no time goes to MPI's search for networks and
// helpers. MPI_Finalize waits for all ranks, so the destructor leaves it out while an exception
// unwinds. main catches inside the session's scope and calls abort_all_ranks, so that the others
// end at once. MPI_Init waits for all ranks, without a limit of its own: after `patience` a line on
// stderr says so, and after `timeout`, at least 30 s, the process ends with EX_OSERR (71).
class MpiSession {
 public:
  MpiSession(int& argc, char**& argv, std::chrono::seconds timeout = std::chrono::seconds(600),
             std::chrono::seconds patience = std::chrono::seconds(20));
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
};

// Ends every rank now (MPI_Abort): for faults of one rank after which the others would wait
// forever.
[[noreturn]] void abort_all_ranks(int exit_code);

// A contiguous run of rows owned by one rank.
struct RowRange {
  std::int64_t begin = 0;
  std::int64_t count = 0;
};

class Comm {
 public:
  struct Options {
    std::chrono::seconds timeout{600};
    bool share_gpu = false;  // several ranks on one GPU: each sets its own NCCL_HOSTID
  };

  // Collective over all ranks of MPI_COMM_WORLD; a single rank without an MpiSession. The stream
  // decides between NCCL and MPI for device buffers and outlives the Comm. Throws the same
  // std::runtime_error on all ranks when backends differ or when two ranks use one GPU without
  // share_gpu. One thread at a time. After an operation has thrown, every other throws too: the
  // ranks are no longer in step.
  Comm(Stream& stream, const Options& options);
  // Collective over the ranks of `parent`: those that pass the same team, in their order there.
  // `parent` outlives the Comm.
  Comm(Comm& parent, int team, Stream& stream);
  // One rank by itself, whatever MPI says: for work of a thread of its own, without calls to MPI.
  explicit Comm(Stream& stream);
  ~Comm();
  Comm(const Comm&) = delete;
  Comm& operator=(const Comm&) = delete;

  int rank() const;
  int size() const;
  bool root() const { return rank() == 0; }

  // Begins to connect the ranks' devices (seconds, most of them in the background), which otherwise
  // the first operation on device buffers does. Collective.
  void connect_ahead(Stream& stream);

  // Device buffers, in stream order: on CUDA the host goes on as soon as NCCL has queued the
  // operation. No-ops for one rank.
  void broadcast(void* data, std::size_t bytes, int from, Stream& stream);
  void broadcast(const std::vector<Piece>& pieces, Stream& stream);  // all at once
  void all_reduce_sum(Matrix<std::int64_t> x, Stream& stream);       // contiguous
  // Each sum on its rank, all at once; what other ranks have in x afterwards is not said.
  void reduce_sums(const std::vector<SumTo>& sums, Stream& stream);
  void all_reduce_max(Matrix<float> x,
                      Stream& stream);  // contiguous; x ≥ +0 or NaN (not −0); NaN wins
  // Every rank holds rows[rank] of `data` (rows of row_bytes bytes each, whole matrix allocated);
  // afterwards all rows are everywhere.
  void all_gather_rows(void* data, std::size_t row_bytes, const std::vector<RowRange>& rows,
                       Stream& stream);

  // Returns when the stream has done all that is queued, within the timeout and with NCCL's errors
  // reported. So do Stream::synchronize and blocking copies on the Comm's stream.
  void wait(Stream& stream);

  // What the operations on device buffers moved so far: this rank's buffers' bytes, and the seconds
  // that the stream (CPU: the caller) spent in them, waits for late ranks included. What went on a
  // stream other than the Comm's, beside its work, is not in it.
  struct Traffic {
    std::int64_t bytes = 0;
    double seconds = 0.0;
  };
  Traffic traffic();

  // Host values, by MPI.
  void barrier();
  std::string broadcast(const std::string& text, int from);
  std::vector<std::string> gather(
      const std::string& text);  // to rank 0 (others get an empty vector)
  std::vector<double> all_gather(
      const std::vector<double>& values);  // concatenated in rank order, any lengths
  std::vector<std::string> all_gather_texts(const std::string& text);  // in rank order
  // The fault of the lowest rank that has one, on all ranks. code: 0 … 255.
  struct Fault {
    int code = 0;
    std::string message;
  };
  std::optional<Fault> agree(const std::optional<Fault>& mine);

 private:
  friend class Ring;
  struct State;

  // An operation on device buffers: with_nccl(communicator, operation), which is connected at the
  // first of them, or with_mpi(operation).
  template <class WithNccl, class WithMpi>
  void transfer(std::size_t bytes, const std::string& operation, WithNccl with_nccl,
                WithMpi with_mpi, Stream& stream);

  std::unique_ptr<State> state_;
};

}  // namespace qpipe
