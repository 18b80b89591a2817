// Sums over the threads of a block, or of one warp. Included by .cu files only.
#pragma once

namespace qpipe::cuda {

// The sum over a block of `threads` threads, in a fixed order; all threads have it. Once in a
// kernel.
template <int threads>
__device__ double reduce_block(double x) {
  constexpr int warp = 32;
  __shared__ double partial[threads / warp];
  for (int step = warp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  if (threadIdx.x % warp == 0) partial[threadIdx.x / warp] = x;
  __syncthreads();
  double sum = 0.0;
  for (int i = 0; i < threads / warp; ++i) sum += partial[i];
  return sum;
}

// The same in float32 over `warps` warps: the warp that calls, or all of the block. As often as one
// likes.
template <int warps>
__device__ float reduce_warps(float x) {
  constexpr int warp = 32;
  for (int step = warp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  if constexpr (warps > 1) {
    __shared__ float partial[warps];
    __syncthreads();  // the previous sum has been read
    if (threadIdx.x % warp == 0) partial[threadIdx.x / warp] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int i = 0; i < warps; ++i) x += partial[i];
  }
  return x;
}

}  // namespace qpipe::cuda
