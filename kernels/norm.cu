#include "kernels/cuda_handles.h"
#include "kernels/norm.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

// A vector to normalise ("slice") is served by one warp when it is short, else by a whole block of
// eight warps. The passes over a slice after the first find it in L1. Thread k owns the same
// elements in every pass, so x and y may be the same matrix.
constexpr int warp = 32;
constexpr int warps_per_block = 8;
constexpr int threads = warp * warps_per_block;
constexpr std::int64_t longest_slice_of_a_warp = 1024;
constexpr unsigned all_lanes = 0xffffffffu;

struct Slices {
  const __nv_bfloat16* x;
  __nv_bfloat16* y;
  std::int64_t x_stride;
  std::int64_t y_stride;
  std::int64_t count;    // rows · per_row
  std::int64_t per_row;  // neighbours within a row, each d wide
  std::int64_t d;
  const __nv_bfloat16* weight;
  const __nv_bfloat16* bias;  // may be null
  float eps;
  float offset;
};

// Where the calling thread finds its slice, and its index among the threads that share it.
template <int warps>
struct Place {
  const __nv_bfloat16* x;
  __nv_bfloat16* y;
  int thread;
  bool valid;

  __device__ explicit Place(const Slices& s) {
    const std::int64_t index = warps == 1
                                   ? std::int64_t{blockIdx.x} * warps_per_block + threadIdx.x / warp
                                   : std::int64_t{blockIdx.x};
    valid = index < s.count;
    const std::int64_t row = s.per_row == 1 ? index : index / s.per_row;
    const std::int64_t column = (index - row * s.per_row) * s.d;
    x = s.x + row * s.x_stride + column;
    y = s.y + row * s.y_stride + column;
    thread = static_cast<int>(warps == 1 ? threadIdx.x % warp : threadIdx.x);
  }
};

// Sum over the threads of a slice in a fixed order; every one of them gets it.
template <int warps>
__device__ float sum_over_slice(float value) {
  for (int step = warp / 2; step > 0; step /= 2) value += __shfl_xor_sync(all_lanes, value, step);
  if constexpr (warps > 1) {
    __shared__ float partial[warps];
    __syncthreads();  // the previous sum has been read
    if (threadIdx.x % warp == 0) partial[threadIdx.x / warp] = value;
    __syncthreads();
    value = 0.0f;
#pragma unroll
    for (int i = 0; i < warps; ++i) value += partial[i];
  }
  return value;
}

template <int count, int warps>
__global__ __launch_bounds__(threads) void rms_norm_kernel(Slices s) {
  const Place<warps> place(s);
  if (!place.valid) return;  // a whole warp, or a whole block
  const std::int64_t first = std::int64_t{place.thread} * count;
  constexpr std::int64_t step = std::int64_t{warps} * warp * count;

  float squares = 0.0f;
#pragma unroll 2
  for (std::int64_t i = first; i < s.d; i += step) {
    float x[count];
    load(place.x + i, x);
#pragma unroll
    for (int k = 0; k < count; ++k) squares += x[k] * x[k];
  }
  const float inverse =
      1.0f / sqrtf(sum_over_slice<warps>(squares) / static_cast<float>(s.d) + s.eps);
#pragma unroll 2
  for (std::int64_t i = first; i < s.d; i += step) {
    float x[count];
    float weight[count];
    load(place.x + i, x);
    load(s.weight + i, weight);
#pragma unroll
    for (int k = 0; k < count; ++k) x[k] = x[k] * inverse * (s.offset + weight[k]);
    store(x, place.y + i);
  }
}

// The variance is taken around the mean in a pass of its own: no cancellation.
template <int count, int warps>
__global__ __launch_bounds__(threads) void layer_norm_kernel(Slices s) {
  const Place<warps> place(s);
  if (!place.valid) return;
  const std::int64_t first = std::int64_t{place.thread} * count;
  constexpr std::int64_t step = std::int64_t{warps} * warp * count;

  float sum = 0.0f;
#pragma unroll 2
  for (std::int64_t i = first; i < s.d; i += step) {
    float x[count];
    load(place.x + i, x);
#pragma unroll
    for (int k = 0; k < count; ++k) sum += x[k];
  }
  const float mean = sum_over_slice<warps>(sum) / static_cast<float>(s.d);
  float squares = 0.0f;
#pragma unroll 2
  for (std::int64_t i = first; i < s.d; i += step) {
    float x[count];
    load(place.x + i, x);
#pragma unroll
    for (int k = 0; k < count; ++k) squares += (x[k] - mean) * (x[k] - mean);
  }
  const float inverse =
      1.0f / sqrtf(sum_over_slice<warps>(squares) / static_cast<float>(s.d) + s.eps);
#pragma unroll 2
  for (std::int64_t i = first; i < s.d; i += step) {
    float x[count];
    float weight[count];
    float bias[count] = {};
    load(place.x + i, x);
    load(s.weight + i, weight);
    if (s.bias != nullptr) load(s.bias + i, bias);
#pragma unroll
    for (int k = 0; k < count; ++k) x[k] = (x[k] - mean) * inverse * weight[k] + bias[k];
    store(x, place.y + i);
  }
}

template <int count, int warps>
void launch(const Slices& s, bool centred, Stream& stream) {
  constexpr int slices_per_block = warps == 1 ? warps_per_block : 1;
  const auto grid = static_cast<unsigned>((s.count + slices_per_block - 1) / slices_per_block);
  if (centred)
    layer_norm_kernel<count, warps><<<grid, threads, 0, stream.cuda().stream>>>(s);
  else
    rms_norm_kernel<count, warps><<<grid, threads, 0, stream.cuda().stream>>>(s);
  check_launch();
}

void normalise(ConstTensor x, std::int64_t per_row, ConstTensor weight, ConstTensor bias, float eps,
               float offset, bool centred, Tensor y, Stream& stream) {
  if (x.size() == 0) return;
  Slices s{};
  s.x = static_cast<const __nv_bfloat16*>(x.data);
  s.y = static_cast<__nv_bfloat16*>(y.data);
  s.x_stride = x.stride;
  s.y_stride = y.stride;
  s.count = x.rows * per_row;
  s.per_row = per_row;
  s.d = x.cols / per_row;
  s.weight = static_cast<const __nv_bfloat16*>(weight.data);
  s.bias = static_cast<const __nv_bfloat16*>(bias.data);
  s.eps = eps;
  s.offset = offset;
  require(s.count <= INT32_MAX, "norm: more rows than one launch can hold");
  const bool in_vectors = vectorizable(x) && vectorizable(y) && vectorizable(weight) &&
                          (bias.empty() || vectorizable(bias)) && s.d % vector_elements == 0;
  const bool one_warp = s.d <= longest_slice_of_a_warp;
  if (in_vectors)
    one_warp ? launch<8, 1>(s, centred, stream) : launch<8, warps_per_block>(s, centred, stream);
  else
    one_warp ? launch<1, 1>(s, centred, stream) : launch<1, warps_per_block>(s, centred, stream);
}

}  // namespace

void rms_norm(ConstTensor x, ConstTensor weight, float eps, float offset, Tensor y,
              Stream& stream) {
  normalise(x, 1, weight, {}, eps, offset, false, y, stream);
}

void layer_norm(ConstTensor x, ConstTensor weight, ConstTensor bias, float eps, Tensor y,
                Stream& stream) {
  normalise(x, 1, weight, bias, eps, 0.0f, true, y, stream);
}

void rms_norm_heads(Tensor x, std::int64_t heads, ConstTensor weight, float eps, float offset,
                    Stream& stream) {
  normalise(x, heads, weight, {}, eps, offset, false, x, stream);
}

}  // namespace qpipe::cuda
