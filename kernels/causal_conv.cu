#include "kernels/causal_conv.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int threads = 128;
constexpr int rows_of_thread = 32;

struct Convolution {
  const __nv_bfloat16* x;
  std::int64_t x_stride;
  std::int64_t head_dim;  // of the slices
  std::int64_t slice_stride;
  const float* weight;
  const float* bias;  // may be null
  std::int64_t k;
  std::int64_t seqlen;
  std::int64_t runs;  // of rows_of_thread rows in a sequence
  std::int64_t all_runs;
  __nv_bfloat16* y;
  std::int64_t y_stride;
  std::int64_t channels;
};

template <bool silu>
__device__ float apply(float x) {
  if constexpr (silu) return x / (1.0f + expf(-x));
  return x;
}

// A thread walks down a run of rows of `count` neighbouring channels, with the k rows that an
// output reads in registers: each element of x is read once, but for k − 1 rows of each run.
template <int k, int count, bool silu>
__global__ __launch_bounds__(threads) void conv_kernel(Convolution v) {
  const std::int64_t c = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * count;
  if (c >= v.channels) return;
  const __nv_bfloat16* column = v.x + c / v.head_dim * v.slice_stride + c % v.head_dim;
  float weight[count][k];
  float bias[count] = {};
#pragma unroll
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int j = 0; j < k; ++j) weight[i][j] = v.weight[(c + i) * k + j];
    if (v.bias != nullptr) bias[i] = v.bias[c + i];
  }
  for (std::int64_t run = blockIdx.y; run < v.all_runs; run += gridDim.y) {
    const std::int64_t first = run % v.runs * rows_of_thread;
    const std::int64_t row0 = run / v.runs * v.seqlen;
    const int rows = static_cast<int>(min(std::int64_t{rows_of_thread}, v.seqlen - first));
    float window[k][count] = {};  // the last k rows, the newest last
#pragma unroll
    for (int j = 1; j < k; ++j)
      if (first - (k - j) >= 0) load(column + (row0 + first - (k - j)) * v.x_stride, window[j]);
#pragma unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma unroll
      for (int j = 0; j + 1 < k; ++j)
#pragma unroll
        for (int i = 0; i < count; ++i) window[j][i] = window[j + 1][i];
      load(column + (row0 + first + r) * v.x_stride, window[k - 1]);
      float sum[count];
#pragma unroll
      for (int i = 0; i < count; ++i) {
        sum[i] = bias[i];
#pragma unroll
        for (int j = 0; j < k; ++j) sum[i] = fmaf(weight[i][j], window[j][i], sum[i]);
        sum[i] = apply<silu>(sum[i]);
      }
      store(sum, v.y + (row0 + first + r) * v.y_stride + c);
    }
  }
}

// Any k: an output's rows are read for it alone, from the caches.
template <int count, bool silu>
__global__ __launch_bounds__(threads) void any_conv_kernel(Convolution v) {
  const std::int64_t c = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * count;
  if (c >= v.channels) return;
  const __nv_bfloat16* column = v.x + c / v.head_dim * v.slice_stride + c % v.head_dim;
  for (std::int64_t run = blockIdx.y; run < v.all_runs; run += gridDim.y) {
    const std::int64_t row0 = run / v.runs * v.seqlen;
    const std::int64_t first = run % v.runs * rows_of_thread;
    const std::int64_t end = min(first + rows_of_thread, v.seqlen);
    for (std::int64_t r = first; r < end; ++r) {
      float sum[count];
#pragma unroll
      for (int i = 0; i < count; ++i) sum[i] = v.bias == nullptr ? 0.0f : v.bias[c + i];
      for (std::int64_t j = max(std::int64_t{0}, v.k - 1 - r); j < v.k; ++j) {
        float x[count];
        load(column + (row0 + r - (v.k - 1) + j) * v.x_stride, x);
#pragma unroll
        for (int i = 0; i < count; ++i) sum[i] = fmaf(v.weight[(c + i) * v.k + j], x[i], sum[i]);
      }
#pragma unroll
      for (int i = 0; i < count; ++i) sum[i] = apply<silu>(sum[i]);
      store(sum, v.y + (row0 + r) * v.y_stride + c);
    }
  }
}

template <int count, bool silu>
void launch(const Convolution& v, Stream& stream) {
  const std::int64_t channels_of_block = std::int64_t{threads} * count;
  const dim3 grid(static_cast<unsigned>((v.channels + channels_of_block - 1) / channels_of_block),
                  static_cast<unsigned>(std::min<std::int64_t>(v.all_runs, 65535)));
  const cudaStream_t queue = stream.cuda().stream;
  switch (v.k) {
    case 2: conv_kernel<2, count, silu><<<grid, threads, 0, queue>>>(v); break;
    case 3: conv_kernel<3, count, silu><<<grid, threads, 0, queue>>>(v); break;
    case 4: conv_kernel<4, count, silu><<<grid, threads, 0, queue>>>(v); break;
    default: any_conv_kernel<count, silu><<<grid, threads, 0, queue>>>(v);
  }
  check_launch();
}

}  // namespace

void causal_conv_slices(ConstTensor x, HeadSlices slices, Matrix<const float> weight,
                        Matrix<const float> bias, bool silu, std::int64_t seqlen, Tensor y,
                        Stream& stream) {
  if (y.size() == 0) return;
  Convolution v{};
  v.x = static_cast<const __nv_bfloat16*>(x.data);
  v.x_stride = x.stride;
  v.head_dim = slices.head_dim;
  v.slice_stride = slices.stride;
  v.weight = weight.data;
  v.bias = bias.data;
  v.k = weight.cols;
  v.seqlen = seqlen;
  v.runs = (seqlen + rows_of_thread - 1) / rows_of_thread;
  v.all_runs = x.rows / seqlen * v.runs;
  v.y = static_cast<__nv_bfloat16*>(y.data);
  v.y_stride = y.stride;
  v.channels = y.cols;
  const bool in_vectors = vectorizable(x, slices) && vectorizable(y);
  with_count(in_vectors, [&](auto count) {
    if (silu)
      launch<decltype(count)::value, true>(v, stream);
    else
      launch<decltype(count)::value, false>(v, stream);
  });
}

}  // namespace qpipe::cuda
