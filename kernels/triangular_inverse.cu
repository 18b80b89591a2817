// Blocks of 128 on the diagonal are inverted by a thread block each. Two neighbours whose inverses
// are known make one twice as large: of [A B; 0 D] it is [A⁻¹ −A⁻¹ B D⁻¹; 0 D⁻¹], by products of
// float32's precision (kernels/split_multiply.h).
#include <algorithm>

#include "kernels/cuda_handles.h"
#include "kernels/split_multiply.h"
#include "kernels/triangular_inverse.h"

namespace qpipe::cuda {

namespace {

constexpr int block = static_cast<int>(inverse_block);
constexpr int tile = 32;

// A column c of the inverse a thread, from its diagonal up: v_i = δ_ic − Σ_{i<k≤c} n_ik v_k.
__global__ __launch_bounds__(block) void invert_blocks(Matrix<const float> n,
                                                       Matrix<float> inverse) {
  extern __shared__ float column[];  // [row, thread]
  const std::int64_t first = std::int64_t{blockIdx.x} * block;
  const int size = static_cast<int>(min(std::int64_t{block}, n.cols - first));
  const int c = static_cast<int>(threadIdx.x);
  if (c >= size) return;
  for (int i = size - 1; i >= 0; --i) {
    float value = 0.0f;
    if (i == c) value = 1.0f;
    if (i < c) {
      const float* row = n.data + (first + i) * n.stride + first;
      float sum[4] = {};
      int k = i + 1;
      for (; k + 3 <= c; k += 4)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          sum[e] = fmaf(__ldg(row + k + e), column[(k + e) * block + c], sum[e]);
      for (; k <= c; ++k) sum[0] = fmaf(__ldg(row + k), column[k * block + c], sum[0]);
      value = -((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
    column[i * block + c] = value;
    inverse.data[(first + i) * inverse.stride + first + c] = value;
  }
}

__global__ void negate(Matrix<const float> x, Matrix<float> y) {
  const std::int64_t c = std::int64_t{blockIdx.x} * tile + threadIdx.x;
  const std::int64_t r = std::int64_t{blockIdx.y} * tile + threadIdx.y;
  if (r < x.rows && c < x.cols) y.data[r * y.stride + c] = -x.data[r * x.stride + c];
}

unsigned blocks(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

}  // namespace

void invert_unit_upper(Matrix<const float> n, Matrix<float> inverse, Stream& stream) {
  const std::int64_t d = n.cols;
  fill_zero(inverse.data, static_cast<std::size_t>(d * d) * sizeof(float), stream);
  constexpr int bytes = block * block * static_cast<int>(sizeof(float));
  check(cudaFuncSetAttribute(&invert_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  invert_blocks<<<blocks(d, block), block, bytes, stream.cuda().stream>>>(n, inverse);
  check_launch();
  std::int64_t largest = block;
  while (2 * largest < d) largest *= 2;
  if (largest >= d) return;
  const SplitMultiply product(largest, largest, largest, stream);
  const Array<float> memory(largest, largest, stream);
  for (std::int64_t size = block; size < d; size *= 2)
    for (std::int64_t first = 0; first + size < d; first += 2 * size) {
      const std::int64_t second = first + size;
      const std::int64_t cols = std::min(size, d - second);
      const Matrix<float> corner = inverse.row_range(first, size).col_range(second, cols);
      const Matrix<float> between(memory.view.data, size, cols);
      // corner is 0: it takes A⁻¹ B, then −(A⁻¹ B) D⁻¹ takes its place.
      product.run(corner, inverse.row_range(first, size).col_range(first, size),
                  n.row_range(first, size).col_range(second, cols), between, stream);
      negate<<<dim3(blocks(cols, tile), blocks(size, tile)), dim3(tile, tile), 0,
               stream.cuda().stream>>>(between, between);
      check_launch();
      product.run(corner, between, inverse.row_range(second, cols).col_range(second, cols), corner,
                  stream);
    }
}

}  // namespace qpipe::cuda
