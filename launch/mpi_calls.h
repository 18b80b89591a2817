// MPI with checked statuses and bounded waits. Internal to launch/, the home of mpi.h.
#pragma once

#define OMPI_SKIP_MPICXX 1  // without the C++ bindings that MPI has given up
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

namespace qpipe {

inline constexpr std::size_t mpi_chunk_bytes = std::size_t{1} << 30;  // MPI counts are ints

// Throws std::runtime_error with MPI's message and the caller's position.
void check(int status, std::source_location where = std::source_location::current());

// Between MPI_Init and MPI_Finalize.
bool mpi_is_active();

// "rank 3 on host n17", of MPI_COMM_WORLD.
std::string this_rank();
std::string host_name();

// Waits until all requests are done and empties the list. Throws std::runtime_error naming rank,
// host and operation after `timeout`; the requests are then still under way, so that the job has to
// end.
void finish(std::vector<MPI_Request>& requests, const std::string& operation,
            std::chrono::seconds timeout);

// Starts a broadcast in pieces of chunk_bytes at most. Nothing for 0 bytes.
void start_broadcast(void* data, std::size_t bytes, int from, MPI_Comm comm,
                     std::vector<MPI_Request>& requests, std::size_t chunk_bytes = mpi_chunk_bytes);

// x ← sum or maximum over the ranks, in pieces of chunk_bytes at most.
void start_all_reduce(void* x, std::size_t count, std::size_t element_bytes, MPI_Datatype type,
                      MPI_Op op, MPI_Comm comm, std::vector<MPI_Request>& requests,
                      std::size_t chunk_bytes = mpi_chunk_bytes);

// The bytes of every rank, in rank order, of any lengths.
std::vector<std::string> all_gather_bytes(const std::string& bytes, MPI_Comm comm,
                                          const std::string& operation,
                                          std::chrono::seconds timeout);

}  // namespace qpipe
