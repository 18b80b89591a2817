// The time of work on a stream.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/stream.h"

namespace qpipe {

// Median of five runs, each behind a preparation that is not timed; one before them sets up
// workspaces.
template <class Prepare, class Run>
double median_ms(Stream& stream, const Prepare& prepare, const Run& run) {
  std::vector<double> times;
  for (int i = 0; i < 6; ++i) {
    prepare();
    stream.synchronize();
    const auto start = std::chrono::steady_clock::now();
    run();
    stream.synchronize();
    if (i > 0)
      times.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
              .count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <class Run>
double median_ms(Stream& stream, const Run& run) {
  return median_ms(
      stream, [] {}, run);
}

}  // namespace qpipe
