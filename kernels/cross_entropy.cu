#include "kernels/cross_entropy.h"
#include "kernels/cuda_handles.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int warps = 16;
constexpr int threads = warp * warps;
constexpr unsigned all_lanes = 0xffffffffu;

// Reduces over the block in a fixed tree (lanes, then warps); every thread gets the result.
template <class Combine>
__device__ float reduce_over_block(float value, Combine combine) {
  __shared__ float partial[warps];
  for (int step = warp / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(all_lanes, value, step));
  __syncthreads();  // the previous result has been read
  if (threadIdx.x % warp == 0) partial[threadIdx.x / warp] = value;
  __syncthreads();
  value = partial[threadIdx.x % warps];
  for (int step = warps / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(all_lanes, value, step));
  return value;
}

struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Plus {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// One block a row: nll = log Σ exp(x − max) − (x[target] − max).
__global__ __launch_bounds__(threads) void cross_entropy_kernel(Matrix<const float> logits,
                                                                const std::int32_t* target,
                                                                float* nll) {
  const std::int64_t row = blockIdx.x;
  const std::int32_t answer = target[row];
  if (answer < 0) {  // the whole block
    if (threadIdx.x == 0) nll[row] = 0.0f;
    return;
  }
  const float* x = logits.data + row * logits.stride;
  float maximum = -INFINITY;
#pragma unroll 8
  for (std::int64_t v = threadIdx.x; v < logits.cols; v += threads) maximum = fmaxf(maximum, x[v]);
  maximum = reduce_over_block(maximum, Larger{});
  float sum = 0.0f;
#pragma unroll 8
  for (std::int64_t v = threadIdx.x; v < logits.cols; v += threads) sum += expf(x[v] - maximum);
  sum = reduce_over_block(sum, Plus{});
  if (threadIdx.x == 0) nll[row] = logf(sum) - (x[answer] - maximum);
}

}  // namespace

void cross_entropy(Matrix<const float> logits, Matrix<const std::int32_t> target, Matrix<float> nll,
                   Stream& stream) {
  if (logits.rows == 0) return;
  require(logits.rows <= INT32_MAX, "cross_entropy: more rows than one launch can hold");
  cross_entropy_kernel<<<static_cast<unsigned>(logits.rows), threads, 0, stream.cuda().stream>>>(
      logits, target.data, nll.data);
  check_launch();
}

}  // namespace qpipe::cuda
