#include "kernels/grid_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int warps_per_block = 8;
constexpr int threads = warp * warps_per_block;
constexpr unsigned all_lanes = 0xffffffffu;

// A warp per (row, group): lane l reads elements l, l + 32, …; sums are then added pairwise (xor
// 16, 8, 4, 2, 1).
__global__ void find_grids_kernel(Matrix<const float> w, std::int64_t group_size,
                                  GridOptions options, const float* weight, Matrix<float> scale,
                                  Matrix<std::uint8_t> zero) {
  const std::int64_t groups = scale.cols;
  const std::int64_t index = std::int64_t{blockIdx.x} * warps_per_block + threadIdx.x / warp;
  if (index >= w.rows * groups) return;  // the whole warp
  const std::int64_t row = index / groups;
  const std::int64_t group = index % groups;
  const int lane = static_cast<int>(threadIdx.x % warp);
  const float* values = w.data + row * w.stride + group * group_size;

  float lo = 0.0f;
  float hi = 0.0f;
  float poison = 0.0f;  // NaN when some weight is not finite
  for (std::int64_t i = lane; i < group_size; i += warp) {
    const float value = values[i];
    lo = value < lo ? value : lo;
    hi = value > hi ? value : hi;
    poison += __fmul_rn(value, 0.0f);
  }
  for (int step = warp / 2; step > 0; step /= 2) {
    poison += __shfl_xor_sync(all_lanes, poison, step);
    lo = fminf(lo, __shfl_xor_sync(all_lanes, lo, step));
    hi = fmaxf(hi, __shfl_xor_sync(all_lanes, hi, step));
  }
  complete_range(lo, hi, options);
  DeviceGrid best = grid_of_range(lo, hi, options);
  if (options.mse_norm > 0.0f) {
    const float max_code = device_largest_code(options.bits);
    float best_error = INFINITY;
    for (int step = 0; step < shrink_steps; ++step) {
      const DeviceGrid candidate = shrunk_grid(lo, hi, step, options, weight != nullptr);
      float error = 0.0f;
      for (std::int64_t i = lane; i < group_size; i += warp) {
        const float own = grid_error(values[i], candidate, max_code, options.mse_norm);
        error = __fadd_rn(error,
                          weight == nullptr ? own : __fmul_rn(own, weight[group * group_size + i]));
      }
      for (int half = warp / 2; half > 0; half /= 2)
        error = __fadd_rn(error, __shfl_xor_sync(all_lanes, error, half));
      if (error < best_error) {
        best_error = error;
        best = candidate;
      }
    }
  }
  if (lane == 0) {
    scale.data[row * scale.stride + group] = best.scale + poison;
    zero.data[row * zero.stride + group] = static_cast<std::uint8_t>(best.zero);
  }
}

__global__ void round_to_grid_kernel(Matrix<const float> w, Matrix<const float> scale,
                                     Matrix<const std::uint8_t> zero,
                                     Matrix<const std::int32_t> group_of, int bits,
                                     Matrix<std::uint8_t> code) {
  const std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (index >= w.rows * w.cols) return;
  const std::int64_t r = index / w.cols;
  const std::int64_t c = index % w.cols;
  const std::int32_t group = group_of.data[c];
  code.data[r * code.stride + c] = static_cast<std::uint8_t>(device_nearest_code(
      w.data[r * w.stride + c], scale.data[r * scale.stride + group],
      static_cast<float>(zero.data[r * zero.stride + group]), device_largest_code(bits)));
}

__device__ void store(float value, float& out) { out = value; }
__device__ void store(float value, __half& out) { out = __float2half_rn(value); }
__device__ void store(float value, __nv_bfloat16& out) { out = __float2bfloat16_rn(value); }

template <class T>
__global__ void dequantize_kernel(Matrix<const std::uint8_t> code, Matrix<const float> scale,
                                  Matrix<const std::uint8_t> zero,
                                  Matrix<const std::int32_t> group_of, T* w, std::int64_t stride) {
  const std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (index >= code.rows * code.cols) return;
  const std::int64_t r = index / code.cols;
  const std::int64_t c = index % code.cols;
  const std::int32_t group = group_of.data[c];
  const float value = device_value(static_cast<float>(code.data[r * code.stride + c]),
                                   scale.data[r * scale.stride + group],
                                   static_cast<float>(zero.data[r * zero.stride + group]));
  store(value, w[r * stride + c]);
}

// Threads that find something all write the same value.
__global__ void inspect_grids_kernel(const float* scale, const std::uint8_t* zero,
                                     std::int64_t count, std::int32_t* found) {
  const std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (index >= count) return;
  if (!isfinite(scale[index])) found[0] = 1;
  if (zero[index] == 0) found[1] = 1;
}

unsigned blocks(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

}  // namespace

void find_weighted_grids(Matrix<const float> w, std::int64_t group_size, const GridOptions& grid,
                         Matrix<const float> weight, Matrix<float> scale, Matrix<std::uint8_t> zero,
                         Stream& stream) {
  const std::int64_t count = w.rows * scale.cols;
  if (count == 0) return;
  find_grids_kernel<<<blocks(count, warps_per_block), threads, 0, stream.cuda().stream>>>(
      w, group_size, grid, weight.empty() ? nullptr : weight.data, scale, zero);
  check_launch();
}

void round_to_grid(Matrix<const float> w, Matrix<const float> scale,
                   Matrix<const std::uint8_t> zero, Matrix<const std::int32_t> group_of, int bits,
                   Matrix<std::uint8_t> code, Stream& stream) {
  if (w.size() == 0) return;
  round_to_grid_kernel<<<blocks(w.size(), threads), threads, 0, stream.cuda().stream>>>(
      w, scale, zero, group_of, bits, code);
  check_launch();
}

void dequantize(Matrix<const std::uint8_t> code, Matrix<const float> scale,
                Matrix<const std::uint8_t> zero, Matrix<const std::int32_t> group_of, Tensor w,
                Stream& stream) {
  if (code.size() == 0) return;
  const unsigned grid = blocks(code.size(), threads);
  const cudaStream_t queue = stream.cuda().stream;
  switch (w.dtype) {
    case DType::f16:
      dequantize_kernel<<<grid, threads, 0, queue>>>(code, scale, zero, group_of,
                                                     static_cast<__half*>(w.data), w.stride);
      break;
    case DType::bf16:
      dequantize_kernel<<<grid, threads, 0, queue>>>(code, scale, zero, group_of,
                                                     static_cast<__nv_bfloat16*>(w.data), w.stride);
      break;
    default:
      dequantize_kernel<<<grid, threads, 0, queue>>>(code, scale, zero, group_of,
                                                     static_cast<float*>(w.data), w.stride);
  }
  check_launch();
}

void inspect_grids(Matrix<const float> scale, Matrix<const std::uint8_t> zero,
                   Matrix<std::int32_t> found, Stream& stream) {
  if (scale.size() == 0) return;
  inspect_grids_kernel<<<blocks(scale.size(), threads), threads, 0, stream.cuda().stream>>>(
      scale.data, zero.data, scale.size(), found.data);
  check_launch();
}

}  // namespace qpipe::cuda
