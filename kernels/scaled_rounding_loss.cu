// δ H δᵀ for many rounded copies of a weight, on tensor cores in float16.
//
// Range: with p_i the power of two next above √h_ii, δ_i p_i is what column i contributes to the output, and |h_ij| / (p_i p_j) ≤ 1. Each
// row δ p is multiplied with a power of two that makes its largest element 1/8 … 1/4, so that a product with h stays below d / 2. Powers of
// two do not round; what float16 loses by underflow is below 2^-22 of the largest element. Work: h is symmetric, so that of every pair of
// off-diagonal panels only one is multiplied, with twice its values.
#include <algorithm>

#include "kernels/grid_cuda.h"
#include "kernels/reduce_cuda.h"
#include "kernels/scaled_rounding_loss.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int threads = 256;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr std::int64_t panel = 2048;

template <class Operation>
__device__ float reduce_warp(float x, Operation operation) {
  for (int step = warp / 2; step > 0; step /= 2) x = operation(x, __shfl_xor_sync(all_lanes, x, step));
  return x;
}

// p_i ≥ √h_ii, the next power of two or the one above; 1 for 0.
__global__ void __launch_bounds__(threads) column_powers_kernel(Matrix<const float> h, float* power) {
  const std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i >= h.cols) return;
  int exponent = 0;
  frexpf(h.data[i * h.stride + i], &exponent);
  power[i] = ldexpf(1.0f, (exponent + 1) >> 1);
}

// triangle[i, j] = h_ij / (p_i p_j) within i's panel, twice that right of it, untouched left of it.
__global__ void __launch_bounds__(row_threads) scaled_triangle_kernel(Matrix<const float> h, const float* power, __half* triangle) {
  const std::int64_t j = first_column(1);
  if (j >= h.cols) return;
  const float column = 1.0f / power[j];
  for (std::int64_t i = blockIdx.y; i < h.rows; i += gridDim.y) {
    if (j / panel < i / panel) continue;
    const float value = h.data[i * h.stride + j] * (1.0f / power[i]) * column;
    triangle[i * h.cols + j] = __float2half_rn(j / panel > i / panel ? 2.0f * value : value);
  }
}

// visit(column, δ · power) for the columns of a group, by one warp. The divisions are by reciprocals: the quotient that is rounded to a
// code is exact all the same (a residual corrects it; the scale has 11 bits), the one by the factor has one rounding more than in
// scaled_rounding. held: elements of a lane that are read once; the rest of a long group is read twice.
template <int held, class T, class Visit>
__device__ void visit_deltas(const T* w, const float* s, const float* power, std::int64_t begin, int group_size, const GridOptions& options,
                             Visit visit) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const auto scaled = [&](int i) { return __fmul_rn(widen(w[begin + i]), s[begin + i]); };
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
    visit(begin + i, (__fdividef(rounded, s[begin + i]) - widen(w[begin + i])) * power[begin + i]);
  };
#pragma unroll
  for (int k = 0; k < held; ++k)
    if (lane + warp * k < group_size) put(lane + warp * k, value[k]);
  for (int i = lane + warp * held; i < group_size; i += warp) put(i, scaled(i));
}

// Row blockIdx.x of w rounded with row blockIdx.y of s: delta[blockIdx.y · rows + blockIdx.x] = δ power / unit, where unit is a power of
// two.
template <int held, class T>
__global__ void __launch_bounds__(threads) delta_kernel(const T* w, std::int64_t stride, Matrix<const float> s, const float* power,
                                                        int group_size, GridOptions options, __half* delta, float* unit) {
  __shared__ float partial[threads / warp];
  const std::int64_t d = s.cols;
  const T* row = w + blockIdx.x * stride;
  const float* factor = s.data + blockIdx.y * s.stride;
  const int begin = static_cast<int>(threadIdx.x) / warp * group_size;
  constexpr int warps = threads / warp;
  float largest = 0.0f;
  for (std::int64_t group = begin; group < d; group += warps * group_size)
    visit_deltas<held>(row, factor, power, group, group_size, options, [&](std::int64_t, float x) { largest = fmaxf(largest, fabsf(x)); });
  largest = reduce_warp(largest, [](float a, float b) { return fmaxf(a, b); });
  if (threadIdx.x % warp == 0) partial[threadIdx.x / warp] = largest;
  __syncthreads();
  for (int i = 0; i < warps; ++i) largest = fmaxf(largest, partial[i]);
  int exponent = 0;
  frexpf(largest, &exponent);
  exponent = min(max(exponent + 2, -100), 100);  // weights beyond are lost in float16 as infinities or zeros
  const std::int64_t out = std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  const float inverse = ldexpf(1.0f, -exponent);
  for (std::int64_t group = begin; group < d; group += warps * group_size)
    visit_deltas<held>(row, factor, power, group, group_size, options,
                       [&](std::int64_t c, float x) { delta[out * d + c] = __float2half_rn(x * inverse); });
  if (threadIdx.x == 0) unit[out] = ldexpf(1.0f, exponent);
}

// row_loss[row] = unit² Σ_c a b.
template <int count>
__global__ void __launch_bounds__(threads)
    dot_rows_kernel(const __half* a, const __half* b, std::int64_t d, const float* unit, double* row_loss) {
  const std::int64_t row = blockIdx.x;
  float sum = 0.0f;
  for (std::int64_t c = std::int64_t{threadIdx.x} * count; c < d; c += threads * count) {
    float x[count];
    float y[count];
    load(a + row * d + c, x);
    load(b + row * d + c, y);
#pragma unroll
    for (int i = 0; i < count; ++i) sum = fmaf(x[i], y[i], sum);
  }
  const double total = reduce_block<threads>(static_cast<double>(sum));
  const auto u = static_cast<double>(unit[row]);
  if (threadIdx.x == 0) row_loss[row] = u * u * total;
}

// loss[blockIdx.x] = Σ row_loss over the rows of one candidate.
__global__ void __launch_bounds__(threads) add_rows_kernel(const double* row_loss, std::int64_t rows, double* loss) {
  double sum = 0.0;
  for (std::int64_t r = threadIdx.x; r < rows; r += threads) sum += row_loss[blockIdx.x * rows + r];
  const double total = reduce_block<threads>(sum);
  if (threadIdx.x == 0) loss[blockIdx.x] = total;
}

// product[:, panel] = delta[:, from the panel on] · triangle[panel, from the panel on]ᵀ. Row-major [r, c] is column-major [c, r].
void multiply_by_triangle(const __half* delta, const __half* triangle, std::int64_t rows, std::int64_t d, __half* product, Stream& stream) {
  const float one = 1.0f;
  const float none = 0.0f;
  for (std::int64_t begin = 0; begin < d; begin += panel)
    check(cublasGemmEx_64(stream.cuda().cublas(), CUBLAS_OP_T, CUBLAS_OP_N, std::min(panel, d - begin), rows, d - begin, &one,
                          triangle + begin * d + begin, CUDA_R_16F, d, delta + begin, CUDA_R_16F, d, &none, product + begin, CUDA_R_16F, d,
                          CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void round_and_subtract(ConstTensor w, Matrix<const float> s, const float* power, std::int64_t group_size, const GridOptions& grid,
                        __half* delta, float* unit, Stream& stream) {
  const dim3 blocks(static_cast<unsigned>(w.rows), static_cast<unsigned>(s.rows));
  const auto size = static_cast<int>(group_size);
  const cudaStream_t queue = stream.cuda().stream;
  with_elements(w, [&](const auto* from) {
    if (group_size <= 4 * warp)
      delta_kernel<4><<<blocks, threads, 0, queue>>>(from, w.stride, s, power, size, grid, delta, unit);
    else
      delta_kernel<16><<<blocks, threads, 0, queue>>>(from, w.stride, s, power, size, grid, delta, unit);
  });
  check_launch();
}

}  // namespace

void scaled_rounding_losses(ConstTensor w, Matrix<const float> s, std::int64_t group_size, const GridOptions& grid, Matrix<const float> h,
                            std::int64_t row_block, Matrix<double> loss, Stream& stream) {
  const std::int64_t d = w.cols;
  const cudaStream_t queue = stream.cuda().stream;
  const std::int64_t most_rows = std::min(row_block, w.rows) * std::min(candidates_at_once, s.rows);
  const TensorArray triangle(DType::f16, d, d, stream);
  const TensorArray delta(DType::f16, most_rows, d, stream);
  const TensorArray product(DType::f16, most_rows, d, stream);
  const Array<float> power(1, d, stream);
  const Array<float> unit(1, most_rows, stream);
  const Array<double> row_loss(1, most_rows, stream);
  auto* triangle_data = static_cast<__half*>(triangle.view.data);
  auto* delta_data = static_cast<__half*>(delta.view.data);
  auto* product_data = static_cast<__half*>(product.view.data);
  column_powers_kernel<<<static_cast<unsigned>((d + threads - 1) / threads), threads, 0, queue>>>(h, power.view.data);
  scaled_triangle_kernel<<<row_grid(d, d, 1), row_threads, 0, queue>>>(h, power.view.data, triangle_data);
  check_launch();
  for (std::int64_t b = 0; b < loss.rows; ++b) {
    const ConstTensor block = w.row_range(b * row_block, std::min(row_block, w.rows - b * row_block));
    for (std::int64_t c = 0; c < s.rows; c += candidates_at_once) {
      const std::int64_t candidates = std::min(candidates_at_once, s.rows - c);
      const std::int64_t rows = candidates * block.rows;
      round_and_subtract(block, s.row_range(c, candidates), power.view.data, group_size, grid, delta_data, unit.view.data, stream);
      multiply_by_triangle(delta_data, triangle_data, rows, d, product_data, stream);
      with_count(d % vector_elements == 0, [&](auto count) {
        dot_rows_kernel<decltype(count)::value>
            <<<static_cast<unsigned>(rows), threads, 0, queue>>>(delta_data, product_data, d, unit.view.data, row_loss.view.data);
      });
      add_rows_kernel<<<static_cast<unsigned>(candidates), threads, 0, queue>>>(row_loss.view.data, block.rows, loss.row(b) + c);
      check_launch();
    }
  }
}

}  // namespace qpipe::cuda
