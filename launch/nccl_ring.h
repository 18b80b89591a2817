// The NCCL half of Ring, free of CUDA and NCCL types (nccl_ring.cu).
#pragma once

#include <cstddef>
#include <string>

#include "launch/nccl_comm.h"

namespace qpipe {

struct NcclRing;

namespace cuda {

// rank and size: in `comm`, which serves the ring alone and stays its owner's. Collective; returns
// when all neighbours are connected.
NcclRing* create_nccl_ring(NcclComm& comm, int rank, int size, Stream& stream);
void destroy_nccl_ring(NcclRing* ring) noexcept;

// 0 bytes: nothing goes that way.
void ring_exchange(NcclRing& ring, const void* to_next, std::size_t send_bytes, void* from_previous,
                   std::size_t receive_bytes, Stream& stream);
void ring_wait_oldest(NcclRing& ring, const std::string& operation);  // and forgets it

}  // namespace cuda
}  // namespace qpipe
