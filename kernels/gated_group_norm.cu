#include "kernels/cuda_handles.h"
#include "kernels/gated_group_norm.h"
#include "kernels/reduce_cuda.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

// A group is served by one warp when it is short, else by a whole block of eight warps. The pass
// after the first finds it in L1. Thread k owns the same elements in both, so y may be x or z.
constexpr int warp = 32;
constexpr int warps_per_block = 8;
constexpr int threads = warp * warps_per_block;
constexpr std::int64_t longest_group_of_a_warp = 1024;

struct Arguments {
  const __nv_bfloat16* x;
  const __nv_bfloat16* z;
  const __nv_bfloat16* weight;
  __nv_bfloat16* y;
  std::int64_t x_stride;
  std::int64_t z_stride;
  std::int64_t y_stride;
  std::int64_t count;  // rows · groups
  std::int64_t groups;
  std::int64_t d;  // columns of a group
  float eps;
  bool gate_first;
};

__device__ float silu(float z) { return z / (1.0f + expf(-z)); }

template <int count, int warps>
__global__ __launch_bounds__(threads) void gated_group_norm_kernel(Arguments p) {
  const std::int64_t index = warps == 1
                                 ? std::int64_t{blockIdx.x} * warps_per_block + threadIdx.x / warp
                                 : std::int64_t{blockIdx.x};
  if (index >= p.count) return;  // a whole warp, or a whole block
  const std::int64_t row = index / p.groups;
  const std::int64_t group = index - row * p.groups;
  const __nv_bfloat16* const x_row = p.x + row * p.x_stride + group * p.d;
  const __nv_bfloat16* const z_row = p.z + row * p.z_stride + group * p.d;
  const __nv_bfloat16* const weight = p.weight + group * p.d;
  __nv_bfloat16* const y_row = p.y + row * p.y_stride + group * p.d;
  const int thread = static_cast<int>(warps == 1 ? threadIdx.x % warp : threadIdx.x);
  const std::int64_t first = std::int64_t{thread} * count;
  constexpr std::int64_t step = std::int64_t{warps} * warp * count;

  float squares = 0.0f;
#pragma unroll 2
  for (std::int64_t i = first; i < p.d; i += step) {
    float x[count];
    float z[count];
    load(x_row + i, x);
    if (p.gate_first) {
      load(z_row + i, z);
#pragma unroll
      for (int k = 0; k < count; ++k) x[k] *= silu(z[k]);
    }
#pragma unroll
    for (int k = 0; k < count; ++k) squares += x[k] * x[k];
  }
  const float inverse =
      1.0f / sqrtf(reduce_warps<warps>(squares) / static_cast<float>(p.d) + p.eps);
#pragma unroll 2
  for (std::int64_t i = first; i < p.d; i += step) {
    float x[count];
    float z[count];
    float w[count];
    load(x_row + i, x);
    load(z_row + i, z);
    load(weight + i, w);
#pragma unroll
    for (int k = 0; k < count; ++k) x[k] = x[k] * silu(z[k]) * inverse * w[k];
    store(x, y_row + i);
  }
}

template <int count, int warps>
void launch(const Arguments& arguments, Stream& stream) {
  constexpr int groups_per_block = warps == 1 ? warps_per_block : 1;
  const auto grid =
      static_cast<unsigned>((arguments.count + groups_per_block - 1) / groups_per_block);
  gated_group_norm_kernel<count, warps><<<grid, threads, 0, stream.cuda().stream>>>(arguments);
  check_launch();
}

}  // namespace

void gated_group_norm(ConstTensor x, ConstTensor z, ConstTensor weight, const GatedGroupNorm& norm,
                      Tensor y, Stream& stream) {
  if (x.size() == 0) return;
  Arguments p{};
  p.x = static_cast<const __nv_bfloat16*>(x.data);
  p.z = static_cast<const __nv_bfloat16*>(z.data);
  p.weight = static_cast<const __nv_bfloat16*>(weight.data);
  p.y = static_cast<__nv_bfloat16*>(y.data);
  p.x_stride = x.stride;
  p.z_stride = z.stride;
  p.y_stride = y.stride;
  p.groups = norm.groups;
  p.d = x.cols / norm.groups;
  p.count = x.rows * norm.groups;
  p.eps = norm.eps;
  p.gate_first = norm.gate_first;
  require(p.count <= INT32_MAX, "gated_group_norm: more rows than one launch can hold");
  const bool in_vectors = vectorizable(x) && vectorizable(z) && vectorizable(y) &&
                          vectorizable(weight) && p.d % vector_elements == 0;
  const bool one_warp = p.d <= longest_group_of_a_warp;
  with_count(in_vectors, [&](auto count) {
    if (one_warp)
      launch<decltype(count)::value, 1>(p, stream);
    else
      launch<decltype(count)::value, warps_per_block>(p, stream);
  });
}

}  // namespace qpipe::cuda
