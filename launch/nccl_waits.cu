#include <algorithm>

#include "kernels/poll_until.h"
#include "launch/nccl_calls.h"
#include "launch/nccl_waits.h"

namespace qpipe {

namespace {

// "all_reduce_sum of 65536 integers", of each communicator that has queued something since a wait.
std::string last_operations(const NcclWaits& waits) {
  std::string text;
  for (const NcclComm* comm : waits.comms)
    if (!comm->queued.empty()) text += (text.empty() ? "" : ", ") + comm->queued;
  return text;
}

[[noreturn]] void fail_late(const NcclWaits& waits, const std::string& operation,
                            std::source_location where) {
  const std::string last = last_operations(waits);
  nccl::throw_fault(
      waits.who, operation,
      nccl::too_late(waits.timeout) + (last.empty() ? "" : "; last queued: " + last), where);
}

void abort_all(NcclWaits& waits) {
  for (NcclComm* comm : waits.comms) {
    if (comm->comm != nullptr) ncclCommAbort(comm->comm);
    comm->comm = nullptr;
  }
}

}  // namespace

namespace cuda {

std::shared_ptr<NcclWaits> create_nccl_waits(const std::string& who, std::chrono::seconds timeout) {
  auto waits = std::make_shared<NcclWaits>();
  waits->who = who;
  waits->timeout = timeout;
  return waits;
}

void wait(NcclWaits& waits, const std::function<bool()>& done, const std::string& operation) {
  const auto where = std::source_location::current();
  const bool owner = std::this_thread::get_id() == waits.owner;
  const auto over = [&] {
    if (done()) return true;
    if (!owner) return false;
    if (waits.late.load()) fail_late(waits, operation, where);
    // A peer's fault is known while the device still waits for it.
    for (NcclComm* comm : waits.comms)
      if (comm->comm != nullptr) nccl::is_settled(*comm, operation, where);
    return false;
  };
  try {
    if (poll_until(over, waits.timeout)) return;
    waits.late.store(true);
    if (owner) fail_late(waits, operation, where);
    nccl::throw_fault(waits.who, operation, nccl::too_late(waits.timeout), where);
  } catch (...) {
    if (owner) abort_all(waits);
    throw;
  }
}

}  // namespace cuda
}  // namespace qpipe
