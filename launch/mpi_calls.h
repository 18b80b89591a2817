// MPI with checked statuses and bounded waits. Internal to launch/, the home of mpi.h.
#pragma once

#define OMPI_SKIP_MPICXX 1  // without the C++ bindings that MPI has given up
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "launch/piece.h"

namespace qpipe {

// Of one MPI call, whose counts are ints, and of what is copied aside at a time.
inline constexpr std::size_t mpi_chunk_bytes = std::size_t{64} << 20;

// Throws SystemFault with MPI's message and the caller's position.
void check(int status, std::source_location where = std::source_location::current());

// Between MPI_Init and MPI_Finalize.
bool mpi_is_active();

// "rank 3 on host n17", of MPI_COMM_WORLD.
std::string this_rank();
std::string host_name();

// Operations under way, with the memory that they read and write: neither ends before the other. An
// operation that outlasts its timeout goes on in MPI's hands, where nothing can cancel a
// collective; its memory then stays for the rest of the process, so that a late message harms
// nobody.
class Requests {
 public:
  Requests() = default;
  ~Requests();
  Requests(const Requests&) = delete;
  Requests& operator=(const Requests&) = delete;

  // For one MPI_I… call.
  MPI_Request* add();
  // Memory for the calls: a copy of the caller's, which finish() copies back when `back` is set.
  void* copy_of(void* data, std::size_t bytes, bool back);
  const void* copy_of(const void* data, std::size_t bytes);
  // Returns when all are done. Throws SystemFault naming rank, host and operation after `timeout`.
  void finish(const std::string& operation, std::chrono::seconds timeout);

  std::size_t size() const { return held_->requests.size(); }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Copy {
    std::unique_ptr<unsigned char[]> memory;
    void* original = nullptr;  // where it goes back to; null: nowhere
    std::size_t bytes = 0;
  };
  struct Held {
    std::vector<MPI_Request> requests;
    std::vector<Copy> copies;
  };
  bool done();

  std::unique_ptr<Held> held_ = std::make_unique<Held>();
  std::size_t bytes_ = 0;
};

// What the following work with, and how messages call it.
struct MpiOperation {
  MPI_Comm comm = MPI_COMM_NULL;
  std::string name;
  std::chrono::seconds timeout{};
  std::size_t chunk_bytes = mpi_chunk_bytes;
};

// Blocking, bounded, in chunks.
void broadcast(const std::vector<Piece>& pieces, const MpiOperation& operation);
// x ← sum or maximum over the ranks.
void all_reduce(void* x, std::size_t count, std::size_t element_bytes, MPI_Datatype type, MPI_Op op,
                const MpiOperation& operation);
// x ← the sum on rank `to`; as it was on others.
void reduce_sum(std::int64_t* x, std::size_t count, int to, const MpiOperation& operation);
// The bytes of every rank, in rank order, of any lengths.
std::vector<std::string> all_gather_bytes(const std::string& bytes, const MpiOperation& operation);

}  // namespace qpipe
