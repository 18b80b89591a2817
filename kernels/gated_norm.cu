#include "kernels/gated_norm.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int warps_per_block = 8;
constexpr int threads = warp * warps_per_block;

struct GatedNorm {
  const __nv_bfloat16* x;
  std::int64_t x_stride;
  const float* weight;
  std::int64_t d;
  std::int64_t heads;
  std::int64_t count;  // of heads of all tokens
  float eps;
  const __nv_bfloat16* gate;
  std::int64_t gate_stride;
  std::int64_t gate_head_dim;
  std::int64_t gate_slice_stride;
  __nv_bfloat16* y;
  std::int64_t y_stride;
};

template <NormGate f>
__device__ float apply(float z) {
  const float divisor = 1.0f + expf(-z);
  return f == NormGate::silu ? z / divisor : 1.0f / divisor;
}

// A warp has one head of one token; its second pass finds x in L1. A thread owns the same elements
// in both, so y may be x.
template <int count, NormGate f>
__global__ __launch_bounds__(threads) void gated_norm_kernel(GatedNorm n) {
  const std::int64_t index =
      std::int64_t{blockIdx.x} * warps_per_block + static_cast<int>(threadIdx.x) / warp;
  if (index >= n.count) return;  // a whole warp
  const std::int64_t t = index / n.heads;
  const std::int64_t begin = (index - t * n.heads) * n.d;
  const std::int64_t first = threadIdx.x % warp * count;
  const __nv_bfloat16* x = n.x + t * n.x_stride + begin;
  float squares = 0.0f;
  for (std::int64_t i = first; i < n.d; i += warp * count) {
    float value[count];
    load(x + i, value);
#pragma unroll
    for (int k = 0; k < count; ++k) squares += value[k] * value[k];
  }
  for (int step = warp / 2; step > 0; step /= 2)
    squares += __shfl_xor_sync(0xffffffffu, squares, step);
  const float inverse = 1.0f / sqrtf(squares / static_cast<float>(n.d) + n.eps);
  for (std::int64_t i = first; i < n.d; i += warp * count) {
    const std::int64_t c = begin + i;
    float value[count];
    float z[count];
    load(x + i, value);
    load(n.gate + t * n.gate_stride + c / n.gate_head_dim * n.gate_slice_stride +
             c % n.gate_head_dim,
         z);
#pragma unroll
    for (int k = 0; k < count; ++k)
      value[k] = value[k] * inverse * n.weight[i + k] * apply<f>(z[k]);
    store(value, n.y + t * n.y_stride + c);
  }
}

}  // namespace

void gated_rms_norm(ConstTensor x, Matrix<const float> weight, float eps, ConstTensor gate,
                    HeadSlices gate_slices, NormGate f, Tensor y, Stream& stream) {
  if (x.size() == 0) return;
  GatedNorm n{};
  n.x = static_cast<const __nv_bfloat16*>(x.data);
  n.x_stride = x.stride;
  n.weight = weight.data;
  n.d = weight.cols;
  n.heads = x.cols / n.d;
  n.count = x.rows * n.heads;
  n.eps = eps;
  n.gate = static_cast<const __nv_bfloat16*>(gate.data);
  n.gate_stride = gate.stride;
  n.gate_head_dim = gate_slices.head_dim;
  n.gate_slice_stride = gate_slices.stride;
  n.y = static_cast<__nv_bfloat16*>(y.data);
  n.y_stride = y.stride;
  const std::int64_t blocks = (n.count + warps_per_block - 1) / warps_per_block;
  require(blocks <= INT32_MAX, "gated_rms_norm: more heads than one launch can hold");
  const bool in_vectors = n.d % vector_elements == 0 && vectorizable(x) && vectorizable(y) &&
                          vectorizable(gate, gate_slices);
  with_count(in_vectors, [&](auto count) {
    const auto grid = static_cast<unsigned>(blocks);
    const cudaStream_t queue = stream.cuda().stream;
    if (f == NormGate::silu)
      gated_norm_kernel<decltype(count)::value, NormGate::silu><<<grid, threads, 0, queue>>>(n);
    else
      gated_norm_kernel<decltype(count)::value, NormGate::sigmoid><<<grid, threads, 0, queue>>>(n);
  });
  check_launch();
}

}  // namespace qpipe::cuda
