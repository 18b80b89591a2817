#include "kernels/multiply.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

template <int count>
__global__ __launch_bounds__(row_threads) void scale_rows_kernel(
    __nv_bfloat16* x, std::int64_t stride, const float* factor, std::int64_t period,
    std::int64_t rows, std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const float row_factor = factor[r % period];
    float value[count];
    load(x + r * stride + c, value);
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] *= row_factor;
    store(value, x + r * stride + c);
  }
}

// One gate for `width` neighbours, a multiple of count.
template <int count>
__global__ __launch_bounds__(row_threads) void gate_kernel(const __nv_bfloat16* gate,
                                                           std::int64_t gate_stride,
                                                           std::int64_t width, __nv_bfloat16* x,
                                                           std::int64_t x_stride, std::int64_t rows,
                                                           std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  const std::int64_t gate_column = c / width;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float value[count];
    load(x + r * x_stride + c, value);
    const float divisor = 1.0f + expf(-widen(gate[r * gate_stride + gate_column]));
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] /= divisor;
    store(value, x + r * x_stride + c);
  }
}

// A gate for each element.
template <int count>
__global__ __launch_bounds__(row_threads) void gate_slices_kernel(
    const __nv_bfloat16* gate, std::int64_t gate_stride, std::int64_t head_dim,
    std::int64_t slice_stride, __nv_bfloat16* x, std::int64_t x_stride, std::int64_t rows,
    std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  const __nv_bfloat16* from = gate + c / head_dim * slice_stride + c % head_dim;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float value[count];
    float g[count];
    load(x + r * x_stride + c, value);
    load(from + r * gate_stride, g);
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] /= 1.0f + expf(-g[i]);
    store(value, x + r * x_stride + c);
  }
}

template <int count, bool one>
__global__ __launch_bounds__(row_threads) void multiply_kernel(
    const __nv_bfloat16* factor, std::int64_t factor_stride, __nv_bfloat16* x,
    std::int64_t x_stride, std::int64_t rows, std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float value[count];
    load(x + r * x_stride + c, value);
    if constexpr (one) {
      const float all = widen(*factor);
#pragma unroll
      for (int i = 0; i < count; ++i) value[i] *= all;
    } else {
      float f[count];
      load(factor + r * factor_stride + c, f);
#pragma unroll
      for (int i = 0; i < count; ++i) value[i] *= f[i];
    }
    store(value, x + r * x_stride + c);
  }
}

template <bool one>
void launch_multiply(ConstTensor factor, bool vectors, Tensor x, Stream& stream) {
  with_count(vectors, [&](auto count) {
    multiply_kernel<decltype(count)::value, one>
        <<<row_grid(x.rows, x.cols, count), row_threads, 0, stream.cuda().stream>>>(
            static_cast<const __nv_bfloat16*>(factor.data), factor.stride,
            static_cast<__nv_bfloat16*>(x.data), x.stride, x.rows, x.cols);
  });
  check_launch();
}

}  // namespace

void scale_rows(Tensor x, Matrix<const float> factor, Stream& stream) {
  if (x.size() == 0) return;
  with_count(vectorizable(x), [&](auto count) {
    scale_rows_kernel<decltype(count)::value>
        <<<row_grid(x.rows, x.cols, count), row_threads, 0, stream.cuda().stream>>>(
            static_cast<__nv_bfloat16*>(x.data), x.stride, factor.data, factor.cols, x.rows,
            x.cols);
  });
  check_launch();
}

void gate_sigmoid(ConstTensor gate, Tensor x, Stream& stream) {
  if (x.size() == 0) return;
  const std::int64_t width = x.cols / gate.cols;
  with_count(vectorizable(x) && width % vector_elements == 0, [&](auto count) {
    gate_kernel<decltype(count)::value>
        <<<row_grid(x.rows, x.cols, count), row_threads, 0, stream.cuda().stream>>>(
            static_cast<const __nv_bfloat16*>(gate.data), gate.stride, width,
            static_cast<__nv_bfloat16*>(x.data), x.stride, x.rows, x.cols);
  });
  check_launch();
}

void gate_sigmoid_slices(ConstTensor gate, HeadSlices slices, Tensor x, Stream& stream) {
  if (x.size() == 0) return;
  const bool in_vectors = vectorizable(x) && vectorizable(gate, slices);
  with_count(in_vectors, [&](auto count) {
    gate_slices_kernel<decltype(count)::value>
        <<<row_grid(x.rows, x.cols, count), row_threads, 0, stream.cuda().stream>>>(
            static_cast<const __nv_bfloat16*>(gate.data), gate.stride, slices.head_dim,
            slices.stride, static_cast<__nv_bfloat16*>(x.data), x.stride, x.rows, x.cols);
  });
  check_launch();
}

void multiply(ConstTensor factor, Tensor x, Stream& stream) {
  if (x.size() == 0) return;
  if (factor.size() == 1) return launch_multiply<true>(factor, vectorizable(x), x, stream);
  launch_multiply<false>(factor, vectorizable(x) && vectorizable(factor), x, stream);
}

}  // namespace qpipe::cuda
