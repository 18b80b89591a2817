#include "kernels/stopwatch.h"

namespace qpipe {

void Stopwatch::Destroy::operator()(CudaStopwatch* watch) const {
  if constexpr (has_cuda) cuda::destroy_stopwatch(watch);
}

Stopwatch::Stopwatch(Stream& stream) : stream_(stream) {
  if constexpr (has_cuda)
    if (stream.on_cuda()) cuda_.reset(cuda::create_stopwatch());
}

Stopwatch::~Stopwatch() = default;

void Stopwatch::start() {
  if constexpr (has_cuda)
    if (cuda_) return cuda::mark(*cuda_, stream_);
  start_ = std::chrono::steady_clock::now();
}

void Stopwatch::stop() {
  if constexpr (has_cuda)
    if (cuda_) return cuda::mark(*cuda_, stream_);
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

double Stopwatch::seconds() {
  if constexpr (has_cuda)
    if (cuda_) return cuda::seconds(*cuda_, *stream_.waiter());
  return seconds_;
}

}  // namespace qpipe
