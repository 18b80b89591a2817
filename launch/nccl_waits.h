// Bounded waits for a GPU on which communicators may have work, free of CUDA and NCCL types
// (nccl_waits.cu). A collective ends only when every rank does its part, and so does everything
// that is queued behind it, copies included.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace qpipe {

struct NcclWaits;

namespace cuda {

// For the communicators that the calling thread will use. who: "rank 3 on host n17".
std::shared_ptr<NcclWaits> create_nccl_waits(const std::string& who, std::chrono::seconds timeout);

// Calls done() until it is true. Ends with SystemFault, which names the rank and the operations
// last queued, after the timeout or when a communicator reports a fault; the communicators are
// aborted, which ends the kernels that wait for other ranks. NCCL's communicators belong to one
// thread: from another one only the timeout is watched, and the owner's next wait aborts them.
void wait(NcclWaits& waits, const std::function<bool()>& done, const std::string& operation);

}  // namespace cuda
}  // namespace qpipe
