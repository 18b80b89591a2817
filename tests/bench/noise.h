// Values for benchmarks: zeros would draw less power, and the card would run faster than it does.
#pragma once

#include <cstdint>

namespace qpipe {

// Roughly normal: the sum of four uniforms, by a linear congruential generator (quick for hundreds
// of millions of values).
class Noise {
 public:
  float next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    float sum = 0.0f;
    for (int shift = 0; shift < 64; shift += 16)
      sum += static_cast<float>((state_ >> shift) & 0xffffu);
    return (sum * 0x1p-16f - 2.0f) * 1.7320508f;
  }

 private:
  std::uint64_t state_ = 1;
};

}  // namespace qpipe
