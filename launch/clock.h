// Seconds on the host's clock. kernels/stopwatch.h has those of a stream's work.
#pragma once

#include <chrono>
#include <exception>

#include "launch/comm.h"

namespace qpipe {

class Clock {
 public:
  using Time = std::chrono::steady_clock::time_point;

  explicit Clock(Time begin = std::chrono::steady_clock::now()) : begin_(begin) {}
  double seconds() const { return seconds_to(std::chrono::steady_clock::now()); }
  // The seconds so far; those of the next lap count from here.
  double lap() {
    const Time now = std::chrono::steady_clock::now();
    const double seconds = seconds_to(now);
    begin_ = now;
    return seconds;
  }

 private:
  double seconds_to(Time end) const { return std::chrono::duration<double>(end - begin_).count(); }

  Time begin_;
};

// Adds the seconds between construction and destruction to `total`; those of the stream's work,
// too, where there is one: its end is waited for.
class Timed {
 public:
  explicit Timed(double& total) : total_(total) {}
  Timed(double& total, Comm& comm, Stream& stream)
      : total_(total), comm_(&comm), stream_(&stream) {}
  ~Timed() noexcept(false) {
    if (comm_ != nullptr && std::uncaught_exceptions() == 0) comm_->wait(*stream_);
    total_ += clock_.seconds();
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  double& total_;
  Comm* comm_ = nullptr;
  Stream* stream_ = nullptr;
  Clock clock_;
};

}  // namespace qpipe
