#include "kernels/copy_queue.h"

#include <cstring>

namespace qpipe {

Event::Event(const Stream& stream) : device_(stream.device()), waiter_(stream.waiter()) {
  if constexpr (has_cuda)
    if (stream.on_cuda()) event_.reset(cuda::create_event(device_));
}

void Event::Destroy::operator()(CUevent_st* event) const {
  if constexpr (has_cuda) cuda::destroy_event(event);
}

void Event::wait() const {
  if constexpr (has_cuda)
    if (event_) cuda::wait_for_event(event_.get(), device_, *waiter_);
}

void record(Event& event, Stream& stream) {
  if constexpr (has_cuda)
    if (event.event_) cuda::record_event(event.event_.get(), stream);
}

void wait_for(const Event& event, Stream& stream) {
  if constexpr (has_cuda)
    if (event.event_) cuda::wait_for_event(event.event_.get(), stream);
}

CopyQueue::CopyQueue(const Stream& stream) : waiter_(stream.waiter()) {
  if constexpr (has_cuda)
    if (stream.on_cuda()) queue_.reset(cuda::create_copy_queue(stream.device()));
}

void CopyQueue::Destroy::operator()(CUstream_st* queue) const {
  if constexpr (has_cuda) cuda::destroy_copy_queue(queue);
}

void CopyQueue::copy(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  if constexpr (has_cuda)
    if (queue_) return cuda::copy(to, from, bytes, queue_.get());
  std::memcpy(to, from, bytes);
}

void CopyQueue::record(Event& event) {
  if constexpr (has_cuda)
    if (queue_) cuda::record_event(event.event_.get(), queue_.get());
}

void CopyQueue::wait_for(const Event& event) {
  if constexpr (has_cuda)
    if (queue_) cuda::wait_for_event(event.event_.get(), queue_.get());
}

void CopyQueue::synchronize() {
  if constexpr (has_cuda)
    if (queue_) cuda::synchronize(queue_.get(), *waiter_);
}

}  // namespace qpipe
