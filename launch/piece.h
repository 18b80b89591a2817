// A run of bytes that one rank has and all get.
#pragma once

#include <cstddef>

namespace qpipe {

struct Piece {
  void* data = nullptr;
  std::size_t bytes = 0;
  int from = 0;
};

}  // namespace qpipe
