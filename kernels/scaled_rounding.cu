#include "kernels/grid_cuda.h"
#include "kernels/scaled_rounding.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int warps_per_block = 8;
constexpr int threads = warp * warps_per_block;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int most_held = 8;  // elements of a group that a lane keeps in registers; longer groups are read twice

// A warp per (row, group).
template <class T, class Out>
__global__ void __launch_bounds__(threads)
    scaled_rounding_kernel(const T* w, std::int64_t stride, Matrix<const float> s, std::int64_t rows, std::int64_t groups, int group_size,
                           GridOptions options, Out* out, std::int64_t out_stride) {
  const std::int64_t index = std::int64_t{blockIdx.x} * warps_per_block + threadIdx.x / warp;
  if (index >= rows * groups) return;  // the whole warp
  const std::int64_t row = index / groups;
  const std::int64_t begin = index % groups * group_size;
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const T* from = w + row * stride + begin;
  const float* factor = s.data + begin;
  const auto scaled = [&](int i) { return __fmul_rn(widen(from[i]), factor[i]); };

  float held[most_held];
  float lo = 0.0f;
  float hi = 0.0f;
#pragma unroll
  for (int k = 0; k < most_held; ++k) {
    const int i = lane + warp * k;
    held[k] = i < group_size ? scaled(i) : 0.0f;
    lo = fminf(lo, held[k]);
    hi = fmaxf(hi, held[k]);
  }
  for (int i = lane + warp * most_held; i < group_size; i += warp) {
    const float value = scaled(i);
    lo = fminf(lo, value);
    hi = fmaxf(hi, value);
  }
  for (int step = warp / 2; step > 0; step /= 2) {
    lo = fminf(lo, __shfl_xor_sync(all_lanes, lo, step));
    hi = fmaxf(hi, __shfl_xor_sync(all_lanes, hi, step));
  }
  complete_range(lo, hi, options);
  const DeviceGrid grid = grid_of_range(lo, hi, options);
  const float max_code = device_largest_code(options.bits);
  Out* to = out + row * out_stride + begin;
  const auto put = [&](int i, float value) {
    const float code = device_nearest_code(value, grid.scale, grid.zero, max_code);
    narrow(__fdiv_rn(device_value(code, grid.scale, grid.zero), factor[i]), to[i]);
  };
#pragma unroll
  for (int k = 0; k < most_held; ++k) {
    const int i = lane + warp * k;
    if (i < group_size) put(i, held[k]);
  }
  for (int i = lane + warp * most_held; i < group_size; i += warp) put(i, scaled(i));
}

}  // namespace

void scaled_rounding(ConstTensor w, Matrix<const float> s, std::int64_t group_size, const GridOptions& grid, Tensor out, Stream& stream) {
  if (w.size() == 0) return;
  const std::int64_t groups = w.cols / group_size;
  const auto blocks = static_cast<unsigned>((w.rows * groups + warps_per_block - 1) / warps_per_block);
  const auto size = static_cast<int>(group_size);
  with_elements(w, [&](const auto* from) {
    with_elements(out, [&](auto* to) {
      scaled_rounding_kernel<<<blocks, threads, 0, stream.cuda().stream>>>(from, w.stride, s, w.rows, groups, size, grid, to, out.stride);
    });
  });
  check_launch();
}

}  // namespace qpipe::cuda
