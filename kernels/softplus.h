// ln(1 + e^x) on the CPU.
#pragma once

#include <algorithm>
#include <cmath>

namespace qpipe {

inline float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x))); }

}  // namespace qpipe
