#include "kernels/copy_queue.h"
#include "kernels/cuda_handles.h"

namespace qpipe::cuda {

CUevent_st* create_event(int device) {
  check(cudaSetDevice(device));
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return event;
}

void destroy_event(CUevent_st* event) noexcept { cudaEventDestroy(event); }

void wait_for_event(CUevent_st* event, int device, const Waiter& waiter) {
  check(cudaSetDevice(device));  // a new thread has device 0, and would make a context there
  wait_for_device(
      waiter, [&] { return cudaEventQuery(event); }, [&] { return cudaEventSynchronize(event); });
}

void record_event(CUevent_st* event, Stream& stream) {
  check(cudaEventRecord(event, stream.cuda().stream));
}

void wait_for_event(CUevent_st* event, Stream& stream) {
  check(cudaStreamWaitEvent(stream.cuda().stream, event, 0));
}

CUstream_st* create_copy_queue(int device) {
  check(cudaSetDevice(device));
  cudaStream_t queue = nullptr;
  check(cudaStreamCreateWithFlags(&queue, cudaStreamNonBlocking));
  return queue;
}

void destroy_copy_queue(CUstream_st* queue) noexcept {
  cudaStreamSynchronize(queue);
  cudaStreamDestroy(queue);
}

void copy(void* to, const void* from, std::size_t bytes, CUstream_st* queue) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, queue));
}

void record_event(CUevent_st* event, CUstream_st* queue) { check(cudaEventRecord(event, queue)); }

void wait_for_event(CUevent_st* event, CUstream_st* queue) {
  check(cudaStreamWaitEvent(queue, event, 0));
}

void synchronize(CUstream_st* queue, const Waiter& waiter) {
  wait_for_device(
      waiter, [&] { return cudaStreamQuery(queue); }, [&] { return cudaStreamSynchronize(queue); });
}

}  // namespace qpipe::cuda
