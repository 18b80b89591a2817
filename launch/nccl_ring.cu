#include <deque>
#include <memory>

#include "launch/nccl_calls.h"
#include "launch/nccl_ring.h"

namespace qpipe {

namespace {
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;

Event record_event(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  Event owner(event);
  check(cudaEventRecord(event, stream));
  return owner;
}
}  // namespace

struct NcclRing {
  NcclComm& comm;
  int next = 0;
  int previous = 0;
  cudaStream_t stream = nullptr;
  std::deque<Event> over;  // of the steps under way
};

namespace cuda {

NcclRing* create_nccl_ring(NcclComm& comm, int rank, int size, Stream& stream) {
  auto* ring = new NcclRing{comm, (rank + 1) % size, (rank + size - 1) % size, nullptr, {}};
  try {
    // Highest priority: a transfer that is late makes two ranks wait.
    int least = 0;
    int greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    check(cudaStreamCreateWithPriority(&ring->stream, cudaStreamNonBlocking, greatest));
    // NCCL connects two ranks at their first exchange, and the host waits for it.
    const Buffer bytes(2, stream);
    ring_exchange(*ring, bytes.data(), 1, static_cast<char*>(bytes.data()) + 1, 1, stream);
    ring_wait_oldest(*ring, "connection of the ring");
  } catch (...) {
    destroy_nccl_ring(ring);
    throw;
  }
  return ring;
}

void destroy_nccl_ring(NcclRing* ring) noexcept {
  if (ring == nullptr) return;
  ring->over.clear();
  if (ring->stream != nullptr) cudaStreamDestroy(ring->stream);
  delete ring;
}

void ring_exchange(NcclRing& ring, const void* to_next, std::size_t send_bytes, void* from_previous,
                   std::size_t receive_bytes, Stream& stream) {
  NcclComm& comm = ring.comm;
  nccl::check_usable(comm, "exchange");
  const Event queued = record_event(stream.cuda().stream);  // destroyed when it has happened
  check(cudaStreamWaitEvent(ring.stream, queued.get()));
  if (send_bytes > 0 || receive_bytes > 0) {
    ncclResult_t status = ncclGroupStart();
    const auto queue = [&](ncclResult_t result) {
      if (status == ncclSuccess && result != ncclInProgress) status = result;
    };
    if (send_bytes > 0)
      queue(ncclSend(to_next, send_bytes, ncclUint8, ring.next, comm.comm, ring.stream));
    if (receive_bytes > 0)
      queue(
          ncclRecv(from_previous, receive_bytes, ncclUint8, ring.previous, comm.comm, ring.stream));
    const ncclResult_t ended = ncclGroupEnd();  // closes the group also after a refused call
    nccl::settle(comm, status == ncclSuccess ? ended : status, "exchange", comm.waits->timeout);
  }
  ring.over.push_back(record_event(ring.stream));
}

void ring_wait_oldest(NcclRing& ring, const std::string& operation) {
  nccl::check_usable(ring.comm, operation);
  cudaEvent_t event = ring.over.front().get();
  const Waiter waiter = [&](const std::function<bool()>& done) {
    wait(*ring.comm.waits, done, operation);
  };
  wait_for_device(
      waiter, [&] { return cudaEventQuery(event); }, [&] { return cudaEventSynchronize(event); });
  ring.over.pop_front();
}

}  // namespace cuda
}  // namespace qpipe
