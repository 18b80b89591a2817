#include "kernels/column_statistics.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int threads = 256;
constexpr int column_threads = 64;
constexpr std::int64_t run = 256;
constexpr std::int64_t rows_per_warp = 64;
constexpr unsigned all_lanes = 0xffffffffu;

__device__ void add(std::int64_t* sum, long long value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

// A thread has `count` neighbouring columns of one run of rows.
template <int count>
__global__ void __launch_bounds__(column_threads)
    column_abs_kernel(const __nv_bfloat16* x, std::int64_t stride, std::int64_t rows,
                      std::int64_t cols, Matrix<const std::int32_t> exponent, int log2_tokens,
                      Matrix<std::int64_t> sum) {
  const std::int64_t c = (std::int64_t{blockIdx.x} * column_threads + threadIdx.x) * count;
  if (c >= cols) return;
  const std::int64_t begin = std::int64_t{blockIdx.y} * run;
  const std::int64_t end = min(begin + run, rows);
  float partial[count] = {};
#pragma unroll 8
  for (std::int64_t t = begin; t < end; ++t) {
    float value[count];
    load(x + t * stride + c, value);
#pragma unroll
    for (int i = 0; i < count; ++i) partial[i] += fabsf(value[i]);
  }
#pragma unroll
  for (int i = 0; i < count; ++i)
    add(sum.data + c + i, __double2ll_rn(ldexp(static_cast<double>(partial[i]),
                                               62 - log2_tokens - exponent.data[c + i])));
}

// A warp takes one group of rows_per_warp rows; lane l owns the columns l, l + 32, … of the group.
template <class T>
__global__ void __launch_bounds__(threads)
    relative_magnitude_kernel(const T* w, std::int64_t stride, std::int64_t rows,
                              std::int64_t groups, int group_size, Matrix<std::int64_t> sum) {
  const std::int64_t group = std::int64_t{blockIdx.x} * (threads / warp) + threadIdx.x / warp;
  if (group >= groups) return;  // the whole warp
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const std::int64_t begin = std::int64_t{blockIdx.y} * rows_per_warp;
  const std::int64_t end = min(begin + rows_per_warp, rows);
  for (int first = 0; first < group_size; first += 4 * warp) {
    long long partial[4] = {};
    for (std::int64_t r = begin; r < end; ++r) {
      const T* row = w + r * stride + group * group_size;
      float largest = 0.0f;
      for (int i = lane; i < group_size; i += warp) largest = fmaxf(largest, fabsf(widen(row[i])));
      for (int step = warp / 2; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, step));
      const float scale = __fadd_rn(largest, 1e-6f);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int i = first + lane + warp * k;
        if (i < group_size)
          partial[k] +=
              __double2ll_rn(static_cast<double>(__fdiv_rn(fabsf(widen(row[i])), scale)) * 0x1p40);
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int i = first + lane + warp * k;
      if (i < group_size) add(sum.data + group * group_size + i, partial[k]);
    }
  }
}

unsigned blocks(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

}  // namespace

void accumulate_column_abs(ConstTensor x, Matrix<const std::int32_t> exponent, int log2_tokens,
                           Matrix<std::int64_t> sum, Stream& stream) {
  if (x.size() == 0) return;
  with_count(vectorizable(x), [&](auto count) {
    const dim3 grid(blocks(x.cols, column_threads * count), blocks(x.rows, run));
    column_abs_kernel<decltype(count)::value><<<grid, column_threads, 0, stream.cuda().stream>>>(
        static_cast<const __nv_bfloat16*>(x.data), x.stride, x.rows, x.cols, exponent, log2_tokens,
        sum);
  });
  check_launch();
}

void accumulate_relative_magnitude(ConstTensor w, std::int64_t group_size, Matrix<std::int64_t> sum,
                                   Stream& stream) {
  if (w.size() == 0) return;
  const std::int64_t groups = w.cols / group_size;
  const dim3 grid(blocks(groups, threads / warp), blocks(w.rows, rows_per_warp));
  const auto size = static_cast<int>(group_size);
  const cudaStream_t queue = stream.cuda().stream;
  with_elements(w, [&](const auto* from) {
    relative_magnitude_kernel<<<grid, threads, 0, queue>>>(from, w.stride, w.rows, groups, size,
                                                           sum);
  });
  check_launch();
}

}  // namespace qpipe::cuda
