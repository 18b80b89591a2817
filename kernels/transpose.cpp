#include "kernels/transpose.h"

#include <algorithm>

namespace qpipe {

namespace {

// Squares whose rows and columns both stay in L1.
constexpr std::int64_t tile = 32;

template <class Bits>
void transpose_bits(ConstTensor from, Tensor to) {
  const auto* source = static_cast<const Bits*>(from.data);
  auto* target = static_cast<Bits*>(to.data);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < to.rows; row += tile)
    for (std::int64_t col = 0; col < to.cols; col += tile)
      for (std::int64_t r = row; r < std::min(row + tile, to.rows); ++r)
        for (std::int64_t c = col; c < std::min(col + tile, to.cols); ++c)
          target[r * to.stride + c] = source[c * from.stride + r];
}

}  // namespace

void transpose(ConstTensor from, Tensor to, Stream& stream) {
  require(from.dtype == to.dtype && (size_of(to.dtype) == 2 || size_of(to.dtype) == 4),
          "transpose: both must have one type of 2 or 4 bytes");
  require(from.rows == to.cols && from.cols == to.rows,
          "transpose: from must be [rows, cols] and to [cols, rows]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::transpose(from, to, stream);
  if (size_of(to.dtype) == 2)
    transpose_bits<std::uint16_t>(from, to);
  else
    transpose_bits<std::uint32_t>(from, to);
}

}  // namespace qpipe
