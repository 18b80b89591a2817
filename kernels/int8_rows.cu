#include "kernels/cuda_handles.h"
#include "kernels/int8_rows.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int threads = 256;

template <int count>
struct alignas(count) Codes {
  std::int8_t code[count];
};

// Rows are strided over; a CUDA block per row reads it twice, the second time from the cache.
template <int count, class T>
__global__ void __launch_bounds__(threads)
    quantize_kernel(const T* __restrict__ w, std::int64_t rows, std::int64_t cols,
                    std::int64_t stride, float* __restrict__ scb, std::int8_t* __restrict__ code,
                    std::int64_t code_stride) {
  __shared__ unsigned warp_largest[threads / warp];
  for (std::int64_t n = blockIdx.x; n < rows; n += gridDim.x) {
    const T* row = w + n * stride;
    unsigned largest_bits = 0;
    float value[count];
    for (std::int64_t k = std::int64_t{threadIdx.x} * count; k < cols; k += threads * count) {
      load(row + k, value);
#pragma unroll
      for (int i = 0; i < count; ++i)
        largest_bits = max(largest_bits,
                           __float_as_uint(__half2float(__float2half_rn(value[i]))) & 0x7fffffffu);
    }
    largest_bits = __reduce_max_sync(0xffffffffu, largest_bits);
    __syncthreads();  // warp_largest of the row before has been read
    if (threadIdx.x % warp == 0) warp_largest[threadIdx.x / warp] = largest_bits;
    __syncthreads();
    for (const unsigned bits : warp_largest) largest_bits = max(largest_bits, bits);
    const float largest = __uint_as_float(largest_bits);
    if (threadIdx.x == 0) scb[n] = largest;
    const bool usable = largest > 0.0f && largest < INFINITY;
    const float scale = __fmul_rn(127.0f, __frcp_rn(largest));
    for (std::int64_t k = std::int64_t{threadIdx.x} * count; k < cols; k += threads * count) {
      load(row + k, value);
      Codes<count> codes;
#pragma unroll
      for (int i = 0; i < count; ++i)
        codes.code[i] = usable ? static_cast<std::int8_t>(__float2int_rn(
                                     __fmul_rn(__half2float(__float2half_rn(value[i])), scale)))
                               : std::int8_t{0};
      *reinterpret_cast<Codes<count>*>(code + n * code_stride + k) = codes;
    }
  }
}

template <int count, class T>
__global__ void __launch_bounds__(row_threads)
    dequantize_kernel(const std::int8_t* __restrict__ code, std::int64_t code_stride,
                      const float* __restrict__ scb, std::int64_t rows, std::int64_t cols,
                      T* __restrict__ w, std::int64_t stride) {
  const std::int64_t k = first_column(count);
  if (k >= cols) return;
  for (std::int64_t n = blockIdx.y; n < rows; n += gridDim.y) {
    const auto codes = *reinterpret_cast<const Codes<count>*>(code + n * code_stride + k);
    float value[count];
#pragma unroll
    for (int i = 0; i < count; ++i)
      value[i] = __fmul_rn(__fmul_rn(static_cast<float>(codes.code[i]), scb[n]), 1.0f / 127.0f);
    store(value, w + n * stride + k);
  }
}

bool codes_vectorizable(Matrix<const std::int8_t> code) {
  return reinterpret_cast<std::uintptr_t>(code.data) % vector_elements == 0 &&
         (code.rows <= 1 || code.stride % vector_elements == 0);
}

template <class T>
void launch_quantize(ConstTensor w, Matrix<float> scb, Matrix<std::int8_t> code,
                     cudaStream_t queue) {
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(w.rows, 65535));
  const auto* from = static_cast<const T*>(w.data);
  if (vectorizable(w) && codes_vectorizable(code))
    quantize_kernel<vector_elements><<<grid, threads, 0, queue>>>(from, w.rows, w.cols, w.stride,
                                                                  scb.data, code.data, code.stride);
  else
    quantize_kernel<1><<<grid, threads, 0, queue>>>(from, w.rows, w.cols, w.stride, scb.data,
                                                    code.data, code.stride);
  check_launch();
}

template <class T>
void launch_dequantize(Matrix<const std::int8_t> code, Matrix<const float> scb, Tensor w,
                       cudaStream_t queue) {
  auto* to = static_cast<T*>(w.data);
  if (vectorizable(w) && codes_vectorizable(code))
    dequantize_kernel<vector_elements>
        <<<row_grid(w.rows, w.cols, vector_elements), row_threads, 0, queue>>>(
            code.data, code.stride, scb.data, w.rows, w.cols, to, w.stride);
  else
    dequantize_kernel<1><<<row_grid(w.rows, w.cols, 1), row_threads, 0, queue>>>(
        code.data, code.stride, scb.data, w.rows, w.cols, to, w.stride);
  check_launch();
}

}  // namespace

void quantize_int8_rows(ConstTensor w, Matrix<float> scb, Matrix<std::int8_t> code,
                        Stream& stream) {
  const cudaStream_t queue = stream.cuda().stream;
  switch (w.dtype) {
    case DType::f16: return launch_quantize<__half>(w, scb, code, queue);
    case DType::bf16: return launch_quantize<__nv_bfloat16>(w, scb, code, queue);
    default: return launch_quantize<float>(w, scb, code, queue);
  }
}

void dequantize_int8_rows(Matrix<const std::int8_t> code, Matrix<const float> scb, Tensor w,
                          Stream& stream) {
  const cudaStream_t queue = stream.cuda().stream;
  switch (w.dtype) {
    case DType::f16: return launch_dequantize<__half>(code, scb, w, queue);
    case DType::bf16: return launch_dequantize<__nv_bfloat16>(code, scb, w, queue);
    default: return launch_dequantize<float>(code, scb, w, queue);
  }
}

}  // namespace qpipe::cuda
