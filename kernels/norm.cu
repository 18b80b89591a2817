#include "kernels/cuda_handles.h"
#include "kernels/norm.h"
#include "kernels/reduce_cuda.h"
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

struct Slices {
  const __nv_bfloat16* x;
  __nv_bfloat16* y;
  std::int64_t x_stride;
  std::int64_t y_stride;
  std::int64_t count;         // rows · per_row
  std::int64_t per_row;       // slices of a row, each d wide …
  std::int64_t slice_stride;  // … at columns 0, slice_stride, 2 slice_stride …
  std::int64_t d;
  const __nv_bfloat16* weight;  // may be null, as bias
  const __nv_bfloat16* bias;
  std::int64_t weight_stride;  // from a slice's weight to that of its neighbour, 0 where they share
  std::int64_t bias_stride;
  float eps;
  float offset;
};

// Where the calling thread finds its slice, and its index among the threads that share it.
template <int warps>
struct Place {
  const __nv_bfloat16* x;
  __nv_bfloat16* y;
  std::int64_t slice;  // within the row
  int thread;
  bool valid;

  __device__ explicit Place(const Slices& s) {
    const std::int64_t index = warps == 1
                                   ? std::int64_t{blockIdx.x} * warps_per_block + threadIdx.x / warp
                                   : std::int64_t{blockIdx.x};
    valid = index < s.count;
    const std::int64_t row = s.per_row == 1 ? index : index / s.per_row;
    slice = index - row * s.per_row;
    x = s.x + row * s.x_stride + slice * s.slice_stride;
    y = s.y + row * s.y_stride + slice * s.slice_stride;
    thread = static_cast<int>(warps == 1 ? threadIdx.x % warp : threadIdx.x);
  }
};

// offset + weight; 1 without a weight.
template <int count>
__device__ void load_factor(const Slices& s, std::int64_t slice, std::int64_t i,
                            float (&factor)[count]) {
  if (s.weight == nullptr) {
#pragma unroll
    for (int k = 0; k < count; ++k) factor[k] = 1.0f;
    return;
  }
  load(s.weight + slice * s.weight_stride + i, factor);
#pragma unroll
  for (int k = 0; k < count; ++k) factor[k] = s.offset + factor[k];
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
      1.0f / sqrtf(reduce_warps<warps>(squares) / static_cast<float>(s.d) + s.eps);
#pragma unroll 2
  for (std::int64_t i = first; i < s.d; i += step) {
    float x[count];
    float factor[count];
    load(place.x + i, x);
    load_factor(s, place.slice, i, factor);
#pragma unroll
    for (int k = 0; k < count; ++k) x[k] = x[k] * inverse * factor[k];
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
  const float mean = reduce_warps<warps>(sum) / static_cast<float>(s.d);
  float squares = 0.0f;
#pragma unroll 2
  for (std::int64_t i = first; i < s.d; i += step) {
    float x[count];
    load(place.x + i, x);
#pragma unroll
    for (int k = 0; k < count; ++k) squares += (x[k] - mean) * (x[k] - mean);
  }
  const float inverse =
      1.0f / sqrtf(reduce_warps<warps>(squares) / static_cast<float>(s.d) + s.eps);
#pragma unroll 2
  for (std::int64_t i = first; i < s.d; i += step) {
    float x[count];
    float factor[count];
    float bias[count] = {};
    load(place.x + i, x);
    load_factor(s, place.slice, i, factor);
    if (s.bias != nullptr) load(s.bias + place.slice * s.bias_stride + i, bias);
#pragma unroll
    for (int k = 0; k < count; ++k) x[k] = (x[k] - mean) * inverse * factor[k] + bias[k];
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

// Whether a row of weights can be read in vectors for every slice.
bool vectorizable_or_empty(ConstTensor weight) { return weight.empty() || vectorizable(weight); }

void normalise(ConstTensor x, const HeadSlices& slices, ConstTensor weight, ConstTensor bias,
               float eps, float offset, bool centred, Tensor y, Stream& stream) {
  if (x.size() == 0) return;
  Slices s{};
  s.x = static_cast<const __nv_bfloat16*>(x.data);
  s.y = static_cast<__nv_bfloat16*>(y.data);
  s.x_stride = x.stride;
  s.y_stride = y.stride;
  s.count = x.rows * slices.heads;
  s.per_row = slices.heads;
  s.slice_stride = slices.stride;
  s.d = slices.head_dim;
  s.weight = static_cast<const __nv_bfloat16*>(weight.data);
  s.bias = static_cast<const __nv_bfloat16*>(bias.data);
  s.weight_stride = weight.rows > 1 ? weight.stride : 0;
  s.bias_stride = bias.rows > 1 ? bias.stride : 0;
  s.eps = eps;
  s.offset = offset;
  require(s.count <= INT32_MAX, "norm: more rows than one launch can hold");
  const bool in_vectors = vectorizable(x.col_range(0, s.d)) && vectorizable(y.col_range(0, s.d)) &&
                          (s.per_row == 1 || s.slice_stride % vector_elements == 0) &&
                          vectorizable_or_empty(weight) && vectorizable_or_empty(bias);
  const bool one_warp = s.d <= longest_slice_of_a_warp;
  if (in_vectors)
    one_warp ? launch<8, 1>(s, centred, stream) : launch<8, warps_per_block>(s, centred, stream);
  else
    one_warp ? launch<1, 1>(s, centred, stream) : launch<1, warps_per_block>(s, centred, stream);
}

}  // namespace

void rms_norm(ConstTensor x, ConstTensor weight, float eps, float offset, Tensor y,
              Stream& stream) {
  normalise(x, {1, x.cols, x.cols}, weight, {}, eps, offset, false, y, stream);
}

void layer_norm(ConstTensor x, ConstTensor weight, ConstTensor bias, float eps, float offset,
                Tensor y, Stream& stream) {
  normalise(x, {1, x.cols, x.cols}, weight, bias, eps, offset, true, y, stream);
}

void rms_norm_slices(Tensor x, HeadSlices slices, ConstTensor weight, float eps, float offset,
                     Stream& stream) {
  normalise(x, slices, weight, {}, eps, offset, false, x, stream);
}

void layer_norm_slices(Tensor x, HeadSlices slices, ConstTensor weight, ConstTensor bias, float eps,
                       float offset, Stream& stream) {
  normalise(x, slices, weight, bias, eps, offset, true, x, stream);
}

}  // namespace qpipe::cuda
