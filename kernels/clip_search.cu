#include "kernels/clip_search.h"
#include "kernels/grid_cuda.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int warps_per_block = 8;
constexpr int threads = warp * warps_per_block;
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

// blockIdx.x: the group; its block of h lies in shared memory, rows of group_size floats. Each warp takes rows in turn; lane l owns the
// columns l, l + 32, … (`owned` of them at most).
template <int owned>
__global__ void __launch_bounds__(threads)
    search_clip_kernel(Matrix<const float> w, Matrix<const float> h, int group_size, GridOptions options, Matrix<float> limit) {
  extern __shared__ float block[];
  const std::int64_t begin = std::int64_t{blockIdx.x} * group_size;
  for (int index = static_cast<int>(threadIdx.x); index < group_size * group_size; index += threads)
    block[index] = h.data[(begin + index / group_size) * h.stride + begin + index % group_size];
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const float max_code = device_largest_code(options.bits);
  const std::int64_t first = std::int64_t{blockIdx.y} * rows_per_block;
  const std::int64_t end = min(first + rows_per_block, w.rows);
  for (std::int64_t row = first + threadIdx.x / warp; row < end; row += warps_per_block) {
    float value[owned];
    float largest = 0.0f;
#pragma unroll
    for (int k = 0; k < owned; ++k) {
      const int i = lane + warp * k;
      value[k] = i < group_size ? w.data[row * w.stride + begin + i] : 0.0f;
      largest = fmaxf(largest, fabsf(value[k]));
    }
    largest = reduce_max(largest);
    float best = largest;
    float best_error = INFINITY;
    for (int step = 0; step < clip_steps; ++step) {
      const float bound = __fmul_rn(largest, __fsub_rn(1.0f, __fdiv_rn(static_cast<float>(step), 20.0f)));
      float lo = 0.0f;
      float hi = 0.0f;
      float delta[owned];
#pragma unroll
      for (int k = 0; k < owned; ++k) {
        delta[k] = fminf(fmaxf(value[k], -bound), bound);
        lo = fminf(lo, delta[k]);
        hi = fmaxf(hi, delta[k]);
      }
      lo = reduce_min(lo);
      hi = reduce_max(hi);
      complete_range(lo, hi, options);
      const DeviceGrid grid = grid_of_range(lo, hi, options);
#pragma unroll
      for (int k = 0; k < owned; ++k) {
        const float code = device_nearest_code(delta[k], grid.scale, grid.zero, max_code);
        delta[k] = lane + warp * k < group_size ? __fsub_rn(device_value(code, grid.scale, grid.zero), value[k]) : 0.0f;
      }
      // product_i = Σ_j H_ij δ_j for the owned i; H is symmetric, so row j is read along i.
      float product[owned] = {};
#pragma unroll
      for (int k = 0; k < owned; ++k) {
        for (int other = 0; other < warp; ++other) {
          const int j = other + warp * k;
          if (j >= group_size) break;
          const float d = __shfl_sync(all_lanes, delta[k], other);
#pragma unroll
          for (int m = 0; m < owned; ++m) {
            const int i = lane + warp * m;
            if (i < group_size) product[m] = fmaf(block[j * group_size + i], d, product[m]);
          }
        }
      }
      float error = 0.0f;
#pragma unroll
      for (int k = 0; k < owned; ++k) error = fmaf(delta[k], product[k], error);
      error = reduce_sum(error);
      if (error < best_error) {
        best_error = error;
        best = bound;
      }
    }
    if (lane == 0) limit.data[row * limit.stride + blockIdx.x] = best;
  }
}

template <int owned>
void launch(Matrix<const float> w, Matrix<const float> h, std::int64_t group_size, const GridOptions& grid, Matrix<float> limit,
            Stream& stream) {
  const auto bytes = static_cast<int>(group_size * group_size * static_cast<std::int64_t>(sizeof(float)));
  check(cudaFuncSetAttribute(search_clip_kernel<owned>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const dim3 blocks(static_cast<unsigned>(limit.cols), static_cast<unsigned>((w.rows + rows_per_block - 1) / rows_per_block));
  search_clip_kernel<owned>
      <<<blocks, threads, static_cast<std::size_t>(bytes), stream.cuda().stream>>>(w, h, static_cast<int>(group_size), grid, limit);
  check_launch();
}

__global__ void clamp_groups_kernel(Matrix<float> w, Matrix<const float> limit, std::int64_t group_size) {
  const std::int64_t c = first_column(1);
  if (c >= w.cols) return;
  for (std::int64_t r = blockIdx.y; r < w.rows; r += gridDim.y) {
    const float bound = limit.data[r * limit.stride + c / group_size];
    float& value = w.data[r * w.stride + c];
    value = fminf(fmaxf(value, -bound), bound);
  }
}

}  // namespace

void search_clip(Matrix<const float> w, Matrix<const float> h, std::int64_t group_size, const GridOptions& grid, Matrix<float> limit,
                 Stream& stream) {
  if (w.size() == 0) return;
  if (group_size <= 32) return launch<1>(w, h, group_size, grid, limit, stream);
  if (group_size <= 64) return launch<2>(w, h, group_size, grid, limit, stream);
  return launch<4>(w, h, group_size, grid, limit, stream);
}

void clamp_groups(Matrix<float> w, Matrix<const float> limit, Stream& stream) {
  if (w.size() == 0) return;
  clamp_groups_kernel<<<row_grid(w.rows, w.cols, 1), row_threads, 0, stream.cuda().stream>>>(w, limit, w.cols / limit.cols);
  check_launch();
}

}  // namespace qpipe::cuda
