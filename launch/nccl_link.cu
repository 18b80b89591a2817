#include <deque>

#include "launch/nccl_calls.h"
#include "launch/nccl_link.h"

namespace qpipe {

namespace {
struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;

Event make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return Event(event);
}
}  // namespace

struct NcclLink {
  cudaStream_t stream = nullptr;
  NcclComm* comm = nullptr;
  std::deque<Event> done;  // of the operations under way
};

namespace {

constexpr int peer_of_sender = 1;
constexpr int peer_of_receiver = 0;

// The link's stream goes on when `stream` has done what is queued.
void follow(NcclLink& link, Stream& stream) {
  const Event queued = make_event();  // destroyed when it has happened
  check(cudaEventRecord(queued.get(), stream.cuda().stream));
  check(cudaStreamWaitEvent(link.stream, queued.get()));
}

void remember(NcclLink& link) {
  Event event = make_event();
  check(cudaEventRecord(event.get(), link.stream));
  link.done.push_back(std::move(event));
}

}  // namespace

namespace cuda {

NcclLink* create_nccl_link(const std::string& unique_id, int rank, bool over_sockets, const std::string& who, std::chrono::seconds timeout,
                           Stream& stream) {
  check(cudaSetDevice(stream.device()));
  auto* link = new NcclLink;
  try {
    // Highest priority: a transfer that is late makes the other rank wait.
    int least = 0;
    int greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    check(cudaStreamCreateWithPriority(&link->stream, cudaStreamNonBlocking, greatest));
    link->comm = nccl::create(unique_id, rank, 2, over_sockets, who, timeout, link->stream);
    // NCCL connects two ranks at their first exchange, and the host waits for it: not later, when one of them may wait for a third.
    const Buffer byte(1, stream);
    if (rank == 0)
      link_send(*link, byte.data(), 1, stream);
    else
      link_receive(*link, byte.data(), 1, stream);
    link_wait_oldest(*link, "connection");
  } catch (...) {
    destroy_nccl_link(link);
    throw;
  }
  return link;
}

void destroy_nccl_link(NcclLink* link) noexcept {
  if (link == nullptr) return;
  destroy_nccl_comm(link->comm);
  link->done.clear();
  if (link->stream != nullptr) cudaStreamDestroy(link->stream);
  delete link;
}

void link_send(NcclLink& link, const void* data, std::size_t bytes, Stream& stream) {
  nccl::check_usable(*link.comm, "send");
  follow(link, stream);
  nccl::settle(*link.comm, ncclSend(data, bytes, ncclUint8, peer_of_sender, link.comm->comm, link.stream), "send", link.comm->timeout);
  remember(link);
}

void link_receive(NcclLink& link, void* data, std::size_t bytes, Stream& stream) {
  nccl::check_usable(*link.comm, "receive");
  follow(link, stream);
  nccl::settle(*link.comm, ncclRecv(data, bytes, ncclUint8, peer_of_receiver, link.comm->comm, link.stream), "receive", link.comm->timeout);
  remember(link);
}

bool link_oldest_is_done(NcclLink& link) {
  const cudaError_t status = cudaEventQuery(link.done.front().get());
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // the query leaves it behind
    return false;
  }
  check(status);
  return true;
}

void link_wait_oldest(NcclLink& link, const std::string& operation) {
  nccl::wait(
      *link.comm, [&] { return cudaEventQuery(link.done.front().get()); }, operation);
  link.done.pop_front();
}

}  // namespace cuda
}  // namespace qpipe
