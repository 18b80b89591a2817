// Copies that run beside a stream's kernels, and marks by which queues wait for each other.
//
// On CUDA a CopyQueue is a CUDA stream of its own and an Event a CUDA event. On the CPU a copy is
// done when the call returns, and there is nothing to wait for.
#pragma once

#include "kernels/stream.h"

struct CUevent_st;   // cudaEvent_t
struct CUstream_st;  // cudaStream_t

namespace qpipe {

// A point in a queue of work. One that was never recorded is passed already.
class Event {
 public:
  Event() = default;
  explicit Event(const Stream& stream);
  void wait() const;  // the calling thread, any one, waits

 private:
  friend class CopyQueue;
  friend void record(Event& event, Stream& stream);
  friend void wait_for(const Event& event, Stream& stream);
  struct Destroy {
    void operator()(CUevent_st* event) const;
  };
  int device_ = 0;
  std::shared_ptr<const Waiter> waiter_;
  std::unique_ptr<CUevent_st, Destroy> event_;
};

// The event is behind all that is queued on the stream.
void record(Event& event, Stream& stream);
// What is queued on the stream from now on waits for the event.
void wait_for(const Event& event, Stream& stream);

class CopyQueue {
 public:
  CopyQueue() = default;
  explicit CopyQueue(const Stream& stream);

  // Between the stream's device and a HostBuffer; both stay as they are until the copy is done.
  void copy(void* to, const void* from, std::size_t bytes);
  void record(Event& event);
  void wait_for(const Event& event);
  void synchronize();

 private:
  struct Destroy {
    void operator()(CUstream_st* queue) const;
  };
  std::shared_ptr<const Waiter> waiter_;
  std::unique_ptr<CUstream_st, Destroy> queue_;
};

namespace cuda {
CUevent_st* create_event(int device);
void destroy_event(CUevent_st* event) noexcept;
void wait_for_event(CUevent_st* event, int device, const Waiter& waiter);
void record_event(CUevent_st* event, Stream& stream);
void wait_for_event(CUevent_st* event, Stream& stream);
CUstream_st* create_copy_queue(int device);
void destroy_copy_queue(CUstream_st* queue) noexcept;
void copy(void* to, const void* from, std::size_t bytes, CUstream_st* queue);
void record_event(CUevent_st* event, CUstream_st* queue);
void wait_for_event(CUevent_st* event, CUstream_st* queue);
void synchronize(CUstream_st* queue, const Waiter& waiter);
}  // namespace cuda

}  // namespace qpipe
