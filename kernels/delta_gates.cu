#include "kernels/cuda_handles.h"
#include "kernels/delta_gates.h"
#include "kernels/softplus_cuda.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

struct Gates {
  const __nv_bfloat16* x;
  std::int64_t x_stride;
  std::int64_t head_dim;
  std::int64_t slice_stride;
  float* y;
  std::int64_t y_stride;
  std::int64_t rows;
  std::int64_t cols;
};

// y[t, c] = f(x[t, c], c), a thread for each element of the matrix.
template <class Function>
__device__ void for_each_gate(const Gates& gates, Function f) {
  const std::int64_t step = std::int64_t{gridDim.x} * row_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * row_threads + threadIdx.x;
       i < gates.rows * gates.cols; i += step) {
    const std::int64_t t = i / gates.cols;
    const std::int64_t c = i - t * gates.cols;
    const std::int64_t column = c / gates.head_dim * gates.slice_stride + c % gates.head_dim;
    gates.y[t * gates.y_stride + c] = f(widen(gates.x[t * gates.x_stride + column]), c);
  }
}

__global__ __launch_bounds__(row_threads) void decay_kernel(Gates gates, const float* a_log,
                                                            std::int64_t width,
                                                            const float* dt_bias) {
  for_each_gate(gates, [&](float x, std::int64_t c) {
    return -expf(a_log[c / width]) * softplus(x + dt_bias[c]);
  });
}

__global__ __launch_bounds__(row_threads) void strength_kernel(Gates gates) {
  for_each_gate(gates, [](float x, std::int64_t) { return 1.0f / (1.0f + expf(-x)); });
}

Gates gates_of(ConstTensor x, const HeadSlices& slices, Matrix<float> y) {
  return {static_cast<const __nv_bfloat16*>(x.data),
          x.stride,
          slices.head_dim,
          slices.stride,
          y.data,
          y.stride,
          y.rows,
          y.cols};
}

unsigned blocks_for(std::int64_t elements) {
  return static_cast<unsigned>(
      std::min<std::int64_t>((elements + row_threads - 1) / row_threads, 1 << 20));
}

}  // namespace

void log_decay(ConstTensor x, HeadSlices slices, Matrix<const float> a_log,
               Matrix<const float> dt_bias, Matrix<float> g, Stream& stream) {
  if (g.size() == 0) return;
  decay_kernel<<<blocks_for(g.size()), row_threads, 0, stream.cuda().stream>>>(
      gates_of(x, slices, g), a_log.data, g.cols / a_log.cols, dt_bias.data);
  check_launch();
}

void write_strength(ConstTensor x, HeadSlices slices, Matrix<float> beta, Stream& stream) {
  if (beta.size() == 0) return;
  strength_kernel<<<blocks_for(beta.size()), row_threads, 0, stream.cuda().stream>>>(
      gates_of(x, slices, beta));
  check_launch();
}

}  // namespace qpipe::cuda
