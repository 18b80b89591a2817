// What several ranks have to do with one another in one operation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace qpipe {

// A run of bytes that one rank has and all get.
struct Piece {
  void* data = nullptr;
  std::size_t bytes = 0;
  int from = 0;
};

// Integers of which one rank gets the sum over all ranks.
struct SumTo {
  Matrix<std::int64_t> x;  // contiguous
  int to = 0;
};

}  // namespace qpipe
