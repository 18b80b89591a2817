#include "kernels/grid_cuda.h"
#include "kernels/scaled_rounding.h"
#include "kernels/vector_cuda.h"

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

template <class T>
void scaled_rounding_of(ConstTensor w, Matrix<const float> s, std::int64_t group_size, const GridOptions& grid, Tensor out,
                        Stream& stream) {
  const std::int64_t groups = w.cols / group_size;
  const auto blocks = static_cast<unsigned>((w.rows * groups + warps_per_block - 1) / warps_per_block);
  const auto* from = static_cast<const T*>(w.data);
  const auto size = static_cast<int>(group_size);
  const cudaStream_t queue = stream.cuda().stream;
  if (out.dtype == DType::f32)
    scaled_rounding_kernel<<<blocks, threads, 0, queue>>>(from, w.stride, s, w.rows, groups, size, grid, static_cast<float*>(out.data),
                                                          out.stride);
  else
    scaled_rounding_kernel<<<blocks, threads, 0, queue>>>(from, w.stride, s, w.rows, groups, size, grid,
                                                          static_cast<__nv_bfloat16*>(out.data), out.stride);
}

template <class T>
__global__ void scale_columns_kernel(const T* w, std::int64_t stride, Matrix<const float> s, Matrix<float> out) {
  const std::int64_t c = first_column(1);
  if (c >= out.cols) return;
  for (std::int64_t r = blockIdx.y; r < out.rows; r += gridDim.y)
    out.data[r * out.stride + c] = __fmul_rn(widen(w[r * stride + c]), s.data[c]);
}

// Calls launch(T{}) with the element type of w.
template <class Launch>
void with_device_type(ConstTensor w, Launch launch) {
  switch (w.dtype) {
    case DType::f16: launch(__half{}); break;
    case DType::bf16: launch(__nv_bfloat16{}); break;
    case DType::f32: launch(float{}); break;
    default: throw std::invalid_argument("weights must be f32, f16 or bf16");
  }
  check_launch();
}

}  // namespace

void scaled_rounding(ConstTensor w, Matrix<const float> s, std::int64_t group_size, const GridOptions& grid, Tensor out, Stream& stream) {
  if (w.size() == 0) return;
  with_device_type(w, [&](auto type) { scaled_rounding_of<decltype(type)>(w, s, group_size, grid, out, stream); });
}

void scale_columns(ConstTensor w, Matrix<const float> s, Matrix<float> out, Stream& stream) {
  if (w.size() == 0) return;
  with_device_type(w, [&](auto type) {
    using T = decltype(type);
    scale_columns_kernel<<<row_grid(w.rows, w.cols, 1), row_threads, 0, stream.cuda().stream>>>(static_cast<const T*>(w.data), w.stride, s,
                                                                                                out);
  });
}

}  // namespace qpipe::cuda
