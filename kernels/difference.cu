#include "kernels/difference.h"
#include "kernels/reduce_cuda.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int threads = 256;
constexpr int most_blocks = 512;  // partial sums, added by one block at the end

// Row r belongs to block r % gridDim.x.
template <int count, class A, class B>
__global__ void __launch_bounds__(threads)
    squared_difference_kernel(const A* a, std::int64_t a_stride, const B* b, std::int64_t b_stride,
                              std::int64_t rows, std::int64_t cols, double* partial) {
  double sum = 0.0;
  for (std::int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    float row_sum = 0.0f;
    for (std::int64_t c = std::int64_t{threadIdx.x} * count; c < cols; c += threads * count) {
      float x[count];
      float y[count];
      load(a + r * a_stride + c, x);
      load(b + r * b_stride + c, y);
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const float difference = x[i] - y[i];
        row_sum = fmaf(difference, difference, row_sum);
      }
    }
    sum += static_cast<double>(row_sum);
  }
  const double total = reduce_block<threads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(threads)
    add_partials(const double* partial, int count, double* total) {
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) sum += partial[i];
  const double all = reduce_block<threads>(sum);
  if (threadIdx.x == 0) *total += all;
}

int block_count(std::int64_t rows) {
  return static_cast<int>(std::min<std::int64_t>(rows, most_blocks));
}

}  // namespace

void add_squared_difference(ConstTensor a, ConstTensor b, Matrix<double> total, Stream& stream) {
  if (a.size() == 0) return;
  const int blocks = block_count(a.rows);
  const Array<double> partial(1, blocks, stream);
  const cudaStream_t queue = stream.cuda().stream;
  const bool vectors = vectorizable(a) && vectorizable(b);
  with_elements(a, [&](const auto* x) {
    with_elements(b, [&](const auto* y) {
      with_count(vectors, [&](auto count) {
        squared_difference_kernel<decltype(count)::value><<<blocks, threads, 0, queue>>>(
            x, a.stride, y, b.stride, a.rows, a.cols, partial.view.data);
      });
    });
  });
  add_partials<<<1, threads, 0, queue>>>(partial.view.data, blocks, total.data);
  check_launch();
}

}  // namespace qpipe::cuda
