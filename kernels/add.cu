#include "kernels/add.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

// y[r, :] += alpha · x[first_row + r mod period, :].
template <int count, class From, class To>
__global__ __launch_bounds__(row_threads) void add_kernel(const From* x, std::int64_t x_stride,
                                                          std::int64_t first_row,
                                                          std::int64_t period, float alpha, To* y,
                                                          std::int64_t y_stride, std::int64_t rows,
                                                          std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float term[count];
    float sum[count];
    load(x + (first_row + r % period) * x_stride + c, term);
    load(y + r * y_stride + c, sum);
#pragma unroll
    for (int i = 0; i < count; ++i) sum[i] = fmaf(alpha, term[i], sum[i]);
    store(sum, y + r * y_stride + c);
  }
}

void launch(ConstTensor x, std::int64_t first_row, std::int64_t period, float alpha, Tensor y,
            Stream& stream) {
  if (y.size() == 0) return;
  with_elements(x, [&](const auto* from) {
    with_elements(y, [&](auto* to) {
      with_count(vectorizable(x) && vectorizable(y), [&](auto count) {
        add_kernel<decltype(count)::value>
            <<<row_grid(y.rows, y.cols, count), row_threads, 0, stream.cuda().stream>>>(
                from, x.stride, first_row, period, alpha, to, y.stride, y.rows, y.cols);
      });
    });
  });
  check_launch();
}

}  // namespace

void add_scaled(ConstTensor x, float alpha, Tensor y, Stream& stream) {
  launch(x, 0, std::max<std::int64_t>(y.rows, 1), alpha, y, stream);
}

void add_rows(ConstTensor table, std::int64_t first_row, std::int64_t seqlen, Tensor y,
              Stream& stream) {
  launch(table, first_row, seqlen, 1.0f, y, stream);
}

}  // namespace qpipe::cuda
