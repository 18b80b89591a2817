// Waiting for another process, another rank or the GPU without waiting forever.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace qpipe {

// Calls done() until it returns true, or until `timeout` is over (then the result is false). Yields
// for the first millisecond, so that short waits cost no more than their length; then sleeps, 50 µs
// at first and 200 µs at most, so that long ones leave the core to others.
template <class Done>
bool poll_until(Done done, std::chrono::steady_clock::duration timeout) {
  using std::chrono::microseconds;
  const auto begin = std::chrono::steady_clock::now();
  microseconds pause{50};
  while (!done()) {
    const auto waited = std::chrono::steady_clock::now() - begin;
    if (waited > timeout) return false;
    if (waited < std::chrono::milliseconds(1)) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, microseconds(200));
    }
  }
  return true;
}

}  // namespace qpipe
