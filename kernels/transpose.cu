#include "kernels/cuda_handles.h"
#include "kernels/transpose.h"

namespace qpipe::cuda {

namespace {

constexpr int tile = 64;
constexpr int threads_y = 4;

// A block moves a square through shared memory, so that both sides are read and written along rows.
template <class Bits>
__global__ __launch_bounds__(tile* threads_y) void transpose_kernel(
    const Bits* from, std::int64_t from_stride, Bits* to, std::int64_t to_stride, std::int64_t rows,
    std::int64_t cols, std::int64_t tiles_of_a_row) {
  // Of the columns of a padded row, as of the rows, neighbours lie in different banks.
  __shared__ Bits square[tile][tile + 4 / sizeof(Bits)];
  const std::int64_t row = blockIdx.x / tiles_of_a_row * tile;
  const std::int64_t col = blockIdx.x % tiles_of_a_row * tile;
  const int x = static_cast<int>(threadIdx.x);
  for (int y = static_cast<int>(threadIdx.y); y < tile; y += threads_y)
    if (row + y < rows && col + x < cols) square[y][x] = from[(row + y) * from_stride + col + x];
  __syncthreads();
  for (int y = static_cast<int>(threadIdx.y); y < tile; y += threads_y)
    if (col + y < cols && row + x < rows) to[(col + y) * to_stride + row + x] = square[x][y];
}

template <class Bits>
void launch(ConstTensor from, Tensor to, Stream& stream) {
  const std::int64_t tiles_of_a_row = (from.cols + tile - 1) / tile;
  const std::int64_t tiles = (from.rows + tile - 1) / tile * tiles_of_a_row;
  require(tiles <= INT32_MAX, "transpose: the matrix is larger than one launch can hold");
  transpose_kernel<<<static_cast<unsigned>(tiles), dim3(tile, threads_y), 0,
                     stream.cuda().stream>>>(static_cast<const Bits*>(from.data), from.stride,
                                             static_cast<Bits*>(to.data), to.stride, from.rows,
                                             from.cols, tiles_of_a_row);
  check_launch();
}

}  // namespace

void transpose(ConstTensor from, Tensor to, Stream& stream) {
  if (to.size() == 0) return;
  if (size_of(to.dtype) == 2) return launch<std::uint16_t>(from, to, stream);
  launch<std::uint32_t>(from, to, stream);
}

}  // namespace qpipe::cuda
