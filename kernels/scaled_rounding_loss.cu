// The weights of all candidates are rounded at once, and their changes multiplied with h together
// (kernels/gram_loss.cu).
#include <algorithm>

#include "kernels/gram_loss_cuda.h"
#include "kernels/grid_cuda.h"
#include "kernels/scaled_rounding_loss.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int threads = 256;
constexpr unsigned all_lanes = 0xffffffffu;

template <class Operation>
__device__ float reduce_warp(float x, Operation operation) {
  for (int step = warp / 2; step > 0; step /= 2)
    x = operation(x, __shfl_xor_sync(all_lanes, x, step));
  return x;
}

// delta = Q(w s) / s − w for a group, by one warp. The divisions are by reciprocals: the quotient
// that is rounded to a code is exact all the same (a residual corrects it; the scale has 11 bits),
// the one by the factor has one rounding more than in scaled_rounding. held: elements of a lane
// that are read once; the rest of a long group is read twice.
template <int held, class T>
__device__ void round_group(const T* w, const float* s, int group_size, const GridOptions& options,
                            __nv_bfloat16* delta) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const auto scaled = [&](int i) { return __fmul_rn(widen(w[i]), s[i]); };
  float value[held];
  float lo = 0.0f;
  float hi = 0.0f;
#pragma unroll
  for (int k = 0; k < held; ++k) {
    const int i = lane + warp * k;
    value[k] = i < group_size ? scaled(i) : 0.0f;
    lo = fminf(lo, value[k]);
    hi = fmaxf(hi, value[k]);
  }
  for (int i = lane + warp * held; i < group_size; i += warp) {
    lo = fminf(lo, scaled(i));
    hi = fmaxf(hi, scaled(i));
  }
  lo = reduce_warp(lo, [](float a, float b) { return fminf(a, b); });
  hi = reduce_warp(hi, [](float a, float b) { return fmaxf(a, b); });
  complete_range(lo, hi, options);
  const DeviceGrid grid = grid_of_range(lo, hi, options);
  const float lowest = -grid.zero;
  const float highest = device_largest_code(options.bits) - grid.zero;
  const float reciprocal = __frcp_rn(grid.scale);
  const auto put = [&](int i, float x) {
    const float estimate = __fmul_rn(x, reciprocal);
    float quotient = fmaf(fmaf(-estimate, grid.scale, x), reciprocal, estimate);
    quotient = quotient > lowest ? quotient : lowest;
    quotient = quotient < highest ? quotient : highest;
    const float rounded = __fmul_rn(grid.scale, rintf(quotient));
    delta[i] = __float2bfloat16_rn(__fdividef(rounded, s[i]) - widen(w[i]));
  };
#pragma unroll
  for (int k = 0; k < held; ++k)
    if (lane + warp * k < group_size) put(lane + warp * k, value[k]);
  for (int i = lane + warp * held; i < group_size; i += warp) put(i, scaled(i));
}

// delta[blockIdx.y · rows + blockIdx.x] = δ of row blockIdx.x of w, rounded with row blockIdx.y of
// s.
template <int held, class T>
__global__ void __launch_bounds__(threads)
    delta_kernel(const T* w, std::int64_t stride, Matrix<const float> s, int group_size,
                 GridOptions options, __nv_bfloat16* delta) {
  const std::int64_t d = s.cols;
  const T* row = w + blockIdx.x * stride;
  const float* factor = s.data + blockIdx.y * s.stride;
  __nv_bfloat16* out = delta + (std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * d;
  constexpr int warps = threads / warp;
  for (std::int64_t begin = threadIdx.x / warp * group_size; begin < d; begin += warps * group_size)
    round_group<held>(row + begin, factor + begin, group_size, options, out + begin);
}

void round_and_subtract(ConstTensor w, Matrix<const float> s, std::int64_t group_size,
                        const GridOptions& grid, Tensor delta, Stream& stream) {
  const dim3 blocks(static_cast<unsigned>(w.rows), static_cast<unsigned>(s.rows));
  const auto size = static_cast<int>(group_size);
  const cudaStream_t queue = stream.cuda().stream;
  auto* to = static_cast<__nv_bfloat16*>(delta.data);
  with_elements(w, [&](const auto* from) {
    if (group_size <= 4 * warp)
      delta_kernel<4><<<blocks, threads, 0, queue>>>(from, w.stride, s, size, grid, to);
    else
      delta_kernel<16><<<blocks, threads, 0, queue>>>(from, w.stride, s, size, grid, to);
  });
  check_launch();
}

}  // namespace

void scaled_rounding_losses(ConstTensor w, Matrix<const float> s, std::int64_t group_size,
                            const GridOptions& grid, const GramMatrix& h, std::int64_t row_block,
                            Matrix<double> loss, Stream& stream) {
  const TensorArray delta(DType::bf16,
                          std::min(row_block, w.rows) * std::min(candidates_at_once, s.rows),
                          w.cols, stream);
  for (std::int64_t b = 0; b < loss.rows; ++b) {
    const ConstTensor block =
        w.row_range(b * row_block, std::min(row_block, w.rows - b * row_block));
    for (std::int64_t c = 0; c < s.rows; c += candidates_at_once) {
      const std::int64_t candidates = std::min(candidates_at_once, s.rows - c);
      const Tensor tried = delta.view.row_range(0, candidates * block.rows);
      round_and_subtract(block, s.row_range(c, candidates), group_size, grid, tried, stream);
      gram_losses(tried, candidates, h, loss.row(b) + c, stream);
    }
  }
}

}  // namespace qpipe::cuda
