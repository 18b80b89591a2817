// Blocks of 128 columns: those of a block are solved one after the other, then subtracted from all
// that are still to do by one product of float32's precision (kernels/split_multiply.h).
#include <algorithm>

#include "kernels/cuda_handles.h"
#include "kernels/split_multiply.h"
#include "kernels/transpose.h"
#include "kernels/triangular_solve.h"

namespace qpipe::cuda {

namespace {

constexpr int block = static_cast<int>(solved_columns);
constexpr int rows_of_block = 64;  // one a thread
constexpr int pitch = block + 1;   // neighbouring rows in different banks

// x[:, begin + k] for k in [0, cols), and minus = −x of these columns.   n: of the block.
template <Side side>
__global__ __launch_bounds__(rows_of_block) void solve_columns(Matrix<const float> n, int cols,
                                                               Matrix<float> x,
                                                               Matrix<float> minus) {
  __shared__ float values[rows_of_block * pitch];
  const std::int64_t row0 = std::int64_t{blockIdx.x} * rows_of_block;
  const int rows = static_cast<int>(min(std::int64_t{rows_of_block}, x.rows - row0));
  for (int i = threadIdx.x; i < rows * cols; i += rows_of_block)
    values[i / cols * pitch + i % cols] = x.data[(row0 + i / cols) * x.stride + i % cols];
  __syncthreads();
  float* own = values + static_cast<int>(threadIdx.x) * pitch;
  for (int step = 0; step < cols && static_cast<int>(threadIdx.x) < rows; ++step) {
    const int k = side == Side::inverse ? step : cols - 1 - step;
    const int first = side == Side::inverse ? 0 : k + 1;
    const int end = side == Side::inverse ? k : cols;
    float sum[4] = {};
    int j = first;
    for (; j + 4 <= end; j += 4)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float other = side == Side::inverse ? __ldg(n.data + (j + e) * n.stride + k)
                                                  : __ldg(n.data + k * n.stride + j + e);
        sum[e] = fmaf(own[j + e], other, sum[e]);
      }
    for (; j < end; ++j)
      sum[0] = fmaf(own[j],
                    side == Side::inverse ? __ldg(n.data + j * n.stride + k)
                                          : __ldg(n.data + k * n.stride + j),
                    sum[0]);
    own[k] -= (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * cols; i += rows_of_block) {
    const float value = values[i / cols * pitch + i % cols];
    x.data[(row0 + i / cols) * x.stride + i % cols] = value;
    minus.data[(row0 + i / cols) * minus.stride + i % cols] = -value;
  }
}

Tensor as_tensor(Matrix<float> m) { return {m.data, DType::f32, m.rows, m.cols, m.stride}; }
ConstTensor as_tensor(Matrix<const float> m) {
  return {m.data, DType::f32, m.rows, m.cols, m.stride};
}

}  // namespace

void solve_unit_upper(Matrix<const float> n, Side side, Matrix<float> x, Stream& stream) {
  const std::int64_t d = n.cols;
  const std::int64_t blocks = (d + block - 1) / block;
  const Array<float> minus(x.rows, block, stream);
  const Array<float> turned(side == Side::inverse ? 0 : block, d, stream);
  const SplitMultiply product(x.rows, block, std::max<std::int64_t>(1, d - block), stream);
  const auto grid = static_cast<unsigned>((x.rows + rows_of_block - 1) / rows_of_block);
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t begin = (side == Side::inverse ? i : blocks - 1 - i) * block;
    const std::int64_t cols = std::min<std::int64_t>(block, d - begin);
    const Matrix<const float> diagonal = n.row_range(begin, cols).col_range(begin, cols);
    const Matrix<float> solved = x.col_range(begin, cols);
    const Matrix<float> negative(minus.view.data, x.rows, cols, minus.view.stride);
    const auto kernel = side == Side::inverse ? &solve_columns<Side::inverse>
                                              : &solve_columns<Side::inverse_of_transpose>;
    kernel<<<grid, rows_of_block, 0, stream.cuda().stream>>>(diagonal, static_cast<int>(cols),
                                                             solved, negative);
    check_launch();
    if (side == Side::inverse) {
      const std::int64_t after = begin + cols;
      if (after == d) continue;
      const Matrix<float> rest = x.col_range(after, d - after);
      product.run(rest, negative, n.row_range(begin, cols).col_range(after, d - after), rest,
                  stream);
    } else if (begin > 0) {
      const Matrix<float> b(turned.view.data, cols, begin);
      cuda::transpose(as_tensor(n.row_range(0, begin).col_range(begin, cols)), as_tensor(b),
                      stream);
      const Matrix<float> rest = x.col_range(0, begin);
      product.run(rest, negative, b, rest, stream);
    }
  }
}

}  // namespace qpipe::cuda
