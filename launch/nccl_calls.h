// NCCL with checked statuses and bounded waits. Included by .cu files of launch/ only.
#pragma once

#include <nccl.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <source_location>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda_handles.h"
#include "launch/nccl_comm.h"
#include "launch/nccl_waits.h"

namespace qpipe {

struct NcclWaits {
  std::string who;
  std::chrono::seconds timeout{};
  std::thread::id owner = std::this_thread::get_id();
  std::atomic<bool> late = false;  // a wait of some thread took too long
  std::vector<NcclComm*> comms;    // the owner's alone
};

struct NcclComm {
  ncclComm_t comm = nullptr;  // null after an abort
  bool starting = true;       // until the first call that needs it
  std::string queued;         // the last operation since the stream was waited for
  std::shared_ptr<NcclWaits> waits;
  cudaStream_t stream = nullptr;
  int exceptions = std::uncaught_exceptions();
};

namespace nccl {

// Throws SystemFault with rank, host, operation and reason.
[[noreturn]] void throw_fault(const std::string& who, const std::string& operation,
                              const std::string& reason, std::source_location where);

// Aborts the communicator and throws.
[[noreturn]] void fail(NcclComm& comm, const std::string& operation, const std::string& reason,
                       std::source_location where = std::source_location::current());

std::string too_late(std::chrono::seconds timeout);

// Before every call; waits until the communicator has started.
void check_usable(NcclComm& comm, const std::string& operation);

// The asynchronous state of the communicator: true when nothing is being set up or queued.
bool is_settled(NcclComm& comm, const std::string& operation,
                std::source_location where = std::source_location::current());

// After a call on a non-blocking communicator: no other call may follow, and nothing may be queued
// behind it, before NCCL has queued it.
void settle(NcclComm& comm, ncclResult_t status, const std::string& operation,
            std::chrono::seconds timeout,
            std::source_location where = std::source_location::current());

// As cuda::create_nccl_comm, on the current device, for work on `stream`. Goes on while NCCL starts
// the communicator in the background.
NcclComm* create(const std::string& unique_id, int rank, int size, bool over_sockets,
                 std::shared_ptr<NcclWaits> waits, cudaStream_t stream);

}  // namespace nccl
}  // namespace qpipe
