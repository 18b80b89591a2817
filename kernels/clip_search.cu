#include "kernels/clip_search.h"
#include "kernels/grid_cuda.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int most_warps = 8;
constexpr int rows_per_block = 64;
constexpr unsigned all_lanes = 0xffffffffu;

__device__ float reduce_max(float x) {
  for (int step = warp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(all_lanes, x, step));
  return x;
}
__device__ float reduce_min(float x) { return -reduce_max(-x); }
__device__ float reduce_sum(float x) {
  for (int step = warp / 2; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}

// One δ of every limit for one column, read as three 16-byte words.
struct alignas(16) Trials {
  float delta[12];
};
static_assert(clip_steps <= 12);

// `owned` neighbouring floats as one access.
template <int owned>
struct alignas(4 * owned) Run {
  float element[owned];
};

// blockIdx.x: the group; its block of h lies in shared memory, rows of 32 · owned floats filled up
// with zeros. Each warp takes rows in turn; lane l owns the columns l · owned, … All limits' δ are
// tried at once, so that an element of h is read once for ten products.
template <int owned>
__global__ void __launch_bounds__(warp* most_warps, 2)
    search_clip_kernel(Matrix<const float> w, Matrix<const float> h, int group_size,
                       GridOptions options, Matrix<float> limit) {
  constexpr int width = warp * owned;
  extern __shared__ float4 shared[];
  auto* block = reinterpret_cast<Run<owned>*>(shared);
  auto* trials = reinterpret_cast<Trials*>(reinterpret_cast<float*>(shared) + width * group_size) +
                 threadIdx.x / warp * width;
  const std::int64_t begin = std::int64_t{blockIdx.x} * group_size;
  for (int index = static_cast<int>(threadIdx.x); index < group_size * width;
       index += static_cast<int>(blockDim.x)) {
    const int column = index % width;
    reinterpret_cast<float*>(shared)[index] =
        column < group_size ? h.data[(begin + index / width) * h.stride + begin + column] : 0.0f;
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const float max_code = device_largest_code(options.bits);
  const std::int64_t first = std::int64_t{blockIdx.y} * rows_per_block;
  const std::int64_t end = min(first + rows_per_block, w.rows);
  for (std::int64_t row = first + threadIdx.x / warp; row < end; row += blockDim.x / warp) {
    float value[owned];
    float lowest = 0.0f;
    float highest = 0.0f;
#pragma unroll
    for (int k = 0; k < owned; ++k) {
      const int i = lane * owned + k;
      value[k] = i < group_size ? w.data[row * w.stride + begin + i] : 0.0f;
      lowest = fminf(lowest, value[k]);
      highest = fmaxf(highest, value[k]);
    }
    lowest = reduce_min(lowest);
    highest = reduce_max(highest);
    const float largest = fmaxf(-lowest, highest);
    const auto bound = [largest](int step) {
      return __fmul_rn(largest, __fsub_rn(1.0f, __fdiv_rn(static_cast<float>(step), 20.0f)));
    };
    Trials trial[owned] = {};
#pragma unroll
    for (int step = 0; step < clip_steps; ++step) {
      float lo = fmaxf(lowest, -bound(step));
      float hi = fminf(highest, bound(step));
      complete_range(lo, hi, options);
      const DeviceGrid grid = grid_of_range(lo, hi, options);
#pragma unroll
      for (int k = 0; k < owned; ++k) {
        const float clipped = fminf(fmaxf(value[k], -bound(step)), bound(step));
        const float code = device_nearest_code(clipped, grid.scale, grid.zero, max_code);
        trial[k].delta[step] = lane * owned + k < group_size
                                   ? __fsub_rn(device_value(code, grid.scale, grid.zero), value[k])
                                   : 0.0f;
      }
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < owned; ++k) trials[lane * owned + k] = trial[k];
    __syncwarp();
    // product_i = Σ_j H_ij δ_j for the owned i; H is symmetric, so row j is read along i.
    float product[owned][clip_steps] = {};
    for (int j = 0; j < group_size; ++j) {
      const Run<owned> h_j = block[j * warp + lane];
      const Trials delta_j = trials[j];
#pragma unroll
      for (int k = 0; k < owned; ++k)
#pragma unroll
        for (int step = 0; step < clip_steps; ++step)
          product[k][step] = fmaf(h_j.element[k], delta_j.delta[step], product[k][step]);
    }
    float best = largest;
    float best_error = INFINITY;
#pragma unroll
    for (int step = 0; step < clip_steps; ++step) {
      float error = 0.0f;
#pragma unroll
      for (int k = 0; k < owned; ++k)
        error = fmaf(trials[lane * owned + k].delta[step], product[k][step], error);
      error = reduce_sum(error);
      if (error < best_error) {
        best_error = error;
        best = bound(step);
      }
    }
    if (lane == 0) limit.data[row * limit.stride + blockIdx.x] = best;
  }
}

template <int owned>
void launch(Matrix<const float> w, Matrix<const float> h, std::int64_t group_size,
            const GridOptions& grid, Matrix<float> limit, Stream& stream) {
  constexpr int width = warp * owned;
  const auto bytes_for = [&](int warps) {
    return (static_cast<std::size_t>(group_size) * sizeof(float) +
            static_cast<std::size_t>(warps) * sizeof(Trials)) *
           width;
  };
  int most_bytes = 0;
  check(cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                               stream.device()));
  int warps = most_warps;  // 112 KiB at most; 88 KiB with half of them
  if (bytes_for(warps) > static_cast<std::size_t>(most_bytes)) warps /= 2;
  const std::size_t bytes = bytes_for(warps);
  check(cudaFuncSetAttribute(search_clip_kernel<owned>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)));
  const dim3 blocks(static_cast<unsigned>(limit.cols),
                    static_cast<unsigned>((w.rows + rows_per_block - 1) / rows_per_block));
  search_clip_kernel<owned>
      <<<blocks, static_cast<unsigned>(warps * warp), bytes, stream.cuda().stream>>>(
          w, h, static_cast<int>(group_size), grid, limit);
  check_launch();
}

__global__ void clamp_groups_kernel(Matrix<float> w, Matrix<const float> limit,
                                    std::int64_t group_size) {
  const std::int64_t c = first_column(1);
  if (c >= w.cols) return;
  for (std::int64_t r = blockIdx.y; r < w.rows; r += gridDim.y) {
    const float bound = limit.data[r * limit.stride + c / group_size];
    float& value = w.data[r * w.stride + c];
    value = fminf(fmaxf(value, -bound), bound);
  }
}

}  // namespace

void search_clip(Matrix<const float> w, Matrix<const float> h, std::int64_t group_size,
                 const GridOptions& grid, Matrix<float> limit, Stream& stream) {
  if (w.size() == 0) return;
  if (group_size <= 32) return launch<1>(w, h, group_size, grid, limit, stream);
  if (group_size <= 64) return launch<2>(w, h, group_size, grid, limit, stream);
  return launch<4>(w, h, group_size, grid, limit, stream);
}

void clamp_groups(Matrix<float> w, Matrix<const float> limit, Stream& stream) {
  if (w.size() == 0) return;
  clamp_groups_kernel<<<row_grid(w.rows, w.cols, 1), row_threads, 0, stream.cuda().stream>>>(
      w, limit, w.cols / limit.cols);
  check_launch();
}

}  // namespace qpipe::cuda
