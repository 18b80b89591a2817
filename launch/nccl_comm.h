// Collectives on device buffers by NCCL, free of CUDA and NCCL types so that host code can name
// them (nccl_comm.cu).
//
// The communicator is non-blocking: every call is followed by a bounded wait for NCCL to have
// queued it, and on an error or at the end of the timeout the communicator is aborted and
// SystemFault names rank, host and operation. Later calls then throw at once.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "launch/comm.h"
#include "launch/nccl_waits.h"
#include "launch/piece.h"

namespace qpipe {

struct NcclComm;

namespace cuda {

// The bytes that rank 0 makes and all ranks pass to create_nccl_comm.
std::string nccl_unique_id();

// Collective; the first call on the communicator waits until it has started. over_sockets: NCCL's
// own socket transport (ranks that share a GPU).
NcclComm* create_nccl_comm(const std::string& unique_id, int rank, int size, bool over_sockets,
                           std::shared_ptr<NcclWaits> waits, Stream& stream);
// Collective unless a call failed or an exception is on its way: then the communicator is aborted.
void destroy_nccl_comm(NcclComm* comm) noexcept;

// In stream order. operation: what messages call it.
void broadcast(NcclComm& comm, const std::vector<Piece>& pieces, const std::string& operation,
               Stream& stream);
void all_reduce_sum(NcclComm& comm, std::int64_t* x, std::size_t count,
                    const std::string& operation, Stream& stream);
void reduce_sums(NcclComm& comm, const std::vector<SumTo>& sums, const std::string& operation,
                 Stream& stream);
void all_reduce_max(NcclComm& comm, float* x, std::size_t count, const std::string& operation,
                    Stream& stream);  // x ≥ +0 or NaN

// Returns when the stream is empty.
void wait(NcclComm& comm, Stream& stream);

}  // namespace cuda
}  // namespace qpipe
