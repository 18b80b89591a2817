// Where allocations, and tensors that share one, begin: plan and allocations count alike.
#pragma once

#include <cstddef>

namespace qpipe {

inline constexpr std::size_t alignment = 256;

// Rounded up to the next boundary.
template <class Integer>
constexpr Integer aligned(Integer bytes) {
  constexpr auto unit = static_cast<Integer>(alignment);
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace qpipe
