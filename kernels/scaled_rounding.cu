#include "kernels/grid_cuda.h"
#include "kernels/scaled_rounding.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int warps_per_block = 8;
constexpr int threads = warp * warps_per_block;
constexpr unsigned all_lanes = 0xffffffffu;

// Q(value) / factor on a grid. The quotient by the scale is by its reciprocal, corrected by the
// residual: correctly rounded all the same, because the scale has 11 bits.
struct Rounder {
  DeviceGrid grid;
  float reciprocal;
  float lowest;
  float highest;

  __device__ Rounder(float lo, float hi, const GridOptions& options) {
    complete_range(lo, hi, options);
    grid = grid_of_range(lo, hi, options);
    reciprocal = __frcp_rn(grid.scale);
    lowest = -grid.zero;
    highest = device_largest_code(options.bits) - grid.zero;
  }
  __device__ float operator()(float value, float factor) const {
    const float estimate = __fmul_rn(value, reciprocal);
    float quotient = fmaf(fmaf(-estimate, grid.scale, value), reciprocal, estimate);
    quotient = quotient > lowest ? quotient : lowest;
    quotient = quotient < highest ? quotient : highest;
    return __fdiv_rn(__fmul_rn(grid.scale, rintf(quotient)), factor);
  }
};

// group_size / 8 neighbouring threads (a power of two, at most a warp) for each (row, group):
// 16-byte accesses.
template <class T, class Out>
__global__ void __launch_bounds__(threads)
    packets_kernel(const T* w, std::int64_t stride, Matrix<const float> s, std::int64_t rows,
                   int lanes, GridOptions options, Out* out, std::int64_t out_stride) {
  const std::int64_t packets = s.cols / vector_elements;
  const std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const bool inside =
      index < rows * packets;  // whole groups; all lanes of a warp take part in the shuffles
  const std::int64_t row = inside ? index / packets : 0;
  const std::int64_t begin = inside ? index % packets * vector_elements : 0;
  float value[vector_elements];
  float factor[vector_elements];
  load(w + row * stride + begin, value);
  load(s.data + begin, factor);
  float lo = 0.0f;
  float hi = 0.0f;
#pragma unroll
  for (int i = 0; i < vector_elements; ++i) {
    value[i] = __fmul_rn(value[i], factor[i]);
    lo = fminf(lo, value[i]);
    hi = fmaxf(hi, value[i]);
  }
  for (int step = lanes / 2; step > 0; step /= 2) {
    lo = fminf(lo, __shfl_xor_sync(all_lanes, lo, step));
    hi = fmaxf(hi, __shfl_xor_sync(all_lanes, hi, step));
  }
  const Rounder rounded(lo, hi, options);
#pragma unroll
  for (int i = 0; i < vector_elements; ++i) value[i] = rounded(value[i], factor[i]);
  if (inside) store(value, out + row * out_stride + begin);
}

// A warp per (row, group).
template <class T, class Out>
__global__ void __launch_bounds__(threads)
    scaled_rounding_kernel(const T* w, std::int64_t stride, Matrix<const float> s,
                           std::int64_t rows, std::int64_t groups, int group_size,
                           GridOptions options, Out* out, std::int64_t out_stride) {
  const std::int64_t index = std::int64_t{blockIdx.x} * warps_per_block + threadIdx.x / warp;
  if (index >= rows * groups) return;  // the whole warp
  const std::int64_t row = index / groups;
  const std::int64_t begin = index % groups * group_size;
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const T* from = w + row * stride + begin;
  const float* factor = s.data + begin;
  const auto scaled = [&](int i) { return __fmul_rn(widen(from[i]), factor[i]); };
  float lo = 0.0f;
  float hi = 0.0f;
  for (int i = lane; i < group_size; i += warp) {
    lo = fminf(lo, scaled(i));
    hi = fmaxf(hi, scaled(i));
  }
  for (int step = warp / 2; step > 0; step /= 2) {
    lo = fminf(lo, __shfl_xor_sync(all_lanes, lo, step));
    hi = fmaxf(hi, __shfl_xor_sync(all_lanes, hi, step));
  }
  const Rounder rounded(lo, hi, options);
  Out* to = out + row * out_stride + begin;
  for (int i = lane; i < group_size; i += warp) narrow(rounded(scaled(i), factor[i]), to[i]);
}

bool power_of_two(std::int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

}  // namespace

void scaled_rounding(ConstTensor w, Matrix<const float> s, std::int64_t group_size,
                     const GridOptions& grid, Tensor out, Stream& stream) {
  if (w.size() == 0) return;
  const cudaStream_t queue = stream.cuda().stream;
  const std::int64_t lanes = group_size / vector_elements;
  if (group_size % vector_elements == 0 && power_of_two(lanes) && lanes <= warp &&
      vectorizable(w) && vectorizable(out) && aligned16(s.data)) {
    const auto blocks = static_cast<unsigned>((w.size() / vector_elements + threads - 1) / threads);
    with_elements(w, [&](const auto* from) {
      with_elements(out, [&](auto* to) {
        packets_kernel<<<blocks, threads, 0, queue>>>(
            from, w.stride, s, w.rows, static_cast<int>(lanes), grid, to, out.stride);
      });
    });
    return check_launch();
  }
  const std::int64_t groups = w.cols / group_size;
  const auto blocks =
      static_cast<unsigned>((w.rows * groups + warps_per_block - 1) / warps_per_block);
  const auto size = static_cast<int>(group_size);
  with_elements(w, [&](const auto* from) {
    with_elements(out, [&](auto* to) {
      scaled_rounding_kernel<<<blocks, threads, 0, queue>>>(from, w.stride, s, w.rows, groups, size,
                                                            grid, to, out.stride);
    });
  });
  check_launch();
}

}  // namespace qpipe::cuda
