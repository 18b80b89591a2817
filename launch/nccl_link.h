// The NCCL half of Link, free of CUDA and NCCL types (nccl_link.cu).
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

#include "kernels/stream.h"

namespace qpipe {

struct NcclLink;

namespace cuda {

// rank 0 sends, rank 1 receives. Collective over the two; returns when they are connected. Other arguments as create_nccl_comm.
NcclLink* create_nccl_link(const std::string& unique_id, int rank, bool over_sockets, const std::string& who, std::chrono::seconds timeout,
                           Stream& stream);
void destroy_nccl_link(NcclLink* link) noexcept;

void link_send(NcclLink& link, const void* data, std::size_t bytes, Stream& stream);
void link_receive(NcclLink& link, void* data, std::size_t bytes, Stream& stream);
bool link_oldest_is_done(NcclLink& link);
void link_wait_oldest(NcclLink& link, const std::string& operation);  // and forgets it

}  // namespace cuda
}  // namespace qpipe
