// Sums over the threads of a block. Included by .cu files only.
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

}  // namespace qpipe::cuda
