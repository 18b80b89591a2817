#include "kernels/cuda_handles.h"
#include "kernels/stopwatch.h"

namespace qpipe {

struct CudaStopwatch {
  std::vector<cudaEvent_t> marks;  // start, stop, start, stop, …
};

namespace cuda {

CudaStopwatch* create_stopwatch() { return new CudaStopwatch; }

void destroy_stopwatch(CudaStopwatch* watch) {
  for (cudaEvent_t event : watch->marks) cudaEventDestroy(event);
  delete watch;
}

void mark(CudaStopwatch& watch, Stream& stream) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event));
  watch.marks.push_back(event);
  check(cudaEventRecord(event, stream.cuda().stream));
}

double seconds(CudaStopwatch& watch, const Waiter& waiter) {
  double sum = 0.0;
  for (std::size_t i = 0; i + 1 < watch.marks.size(); i += 2) {
    float ms = 0.0f;
    const cudaEvent_t stop = watch.marks[i + 1];
    wait_for_device(
        waiter, [&] { return cudaEventQuery(stop); }, [&] { return cudaEventSynchronize(stop); });
    check(cudaEventElapsedTime(&ms, watch.marks[i], watch.marks[i + 1]));
    sum += 1e-3 * static_cast<double>(ms);
  }
  return sum;
}

}  // namespace cuda
}  // namespace qpipe
