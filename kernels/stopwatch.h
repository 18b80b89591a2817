// How long a stream works on what is queued between start() and stop().
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "kernels/stream.h"

namespace qpipe {

struct CudaStopwatch;

class Stopwatch {
 public:
  explicit Stopwatch(Stream& stream);  // which outlives it
  ~Stopwatch();
  void start();
  void stop();
  // The sum over all intervals; waits for the last.
  double seconds();

 private:
  struct Destroy {
    void operator()(CudaStopwatch* watch) const;
  };
  Stream& stream_;
  std::chrono::steady_clock::time_point start_;
  double seconds_ = 0.0;
  std::unique_ptr<CudaStopwatch, Destroy> cuda_;
};

namespace cuda {
CudaStopwatch* create_stopwatch();
void destroy_stopwatch(CudaStopwatch* watch);
void mark(CudaStopwatch& watch, Stream& stream);
double seconds(CudaStopwatch& watch, const Waiter& waiter);
}  // namespace cuda

}  // namespace qpipe
