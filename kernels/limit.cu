#include "kernels/limit.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

struct Clamp {
  float limit;
  __device__ float operator()(float x) const { return x < -limit ? -limit : x > limit ? limit : x; }
};

struct SoftCap {
  float cap;
  __device__ float operator()(float x) const { return cap * tanhf(x / cap); }
};

template <int count, class T, class Operation>
__global__ __launch_bounds__(row_threads) void apply_kernel(T* x, std::int64_t stride,
                                                            std::int64_t rows, std::int64_t cols,
                                                            Operation operation) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float value[count];
    load(x + r * stride + c, value);
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] = operation(value[i]);
    store(value, x + r * stride + c);
  }
}

template <class Operation>
void apply(Tensor x, Operation operation, Stream& stream) {
  if (x.size() == 0) return;
  with_elements(x, [&](auto* elements) {
    with_count(vectorizable(x), [&](auto count) {
      apply_kernel<decltype(count)::value>
          <<<row_grid(x.rows, x.cols, count), row_threads, 0, stream.cuda().stream>>>(
              elements, x.stride, x.rows, x.cols, operation);
    });
  });
  check_launch();
}

}  // namespace

void clamp(Tensor x, float limit, Stream& stream) { apply(x, Clamp{limit}, stream); }

void soft_cap(Tensor x, float cap, Stream& stream) { apply(x, SoftCap{cap}, stream); }

}  // namespace qpipe::cuda
