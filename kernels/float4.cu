#include <cuda_fp8.h>

#include "kernels/float4.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr unsigned all_lanes = 0xffffffffu;
// A thread has eight columns: one 16-byte load of 16-bit weights, one 4-byte store of codes. Two
// (NVFP4) or four (MXFP4) neighbours make a group.
constexpr int columns = vector_elements;

// float4.cpp, to_e2m1.
__device__ unsigned encode(float x) {
  const unsigned sign = __float_as_uint(x) >> 31 << 3;
  const float magnitude = fabsf(x) < 6.0f ? fabsf(x) : 6.0f;
  const unsigned bits = __float_as_uint(magnitude);
  const unsigned above = ((bits + 0x1fffffu + ((bits >> 22) & 1u)) >> 22) - 252u;
  const unsigned below = static_cast<unsigned>(__float2int_rn(2.0f * magnitude));
  return sign | (magnitude < 1.0f ? below : above);
}

// The index is a 3-bit float: exponent (bias 1), one mantissa bit.
__device__ float decode(unsigned code) {
  const unsigned index = code & 7u;
  const float magnitude =
      index < 2u ? 0.5f * static_cast<float>(index) : __uint_as_float((index + 252u) << 22);
  return (code & 8u) != 0u ? -magnitude : magnitude;
}

struct Nvfp4 {
  static constexpr int lanes = static_cast<int>(nvfp4_group) / columns;
  float global_scale;

  __device__ std::uint8_t scale_of(float largest) const {
    const float wanted = __fmul_rn(global_scale, __fdiv_rn(largest, 6.0f));
    if (isnan(wanted)) return 0x7f;
    const std::uint8_t code = __nv_cvt_float_to_fp8(wanted, __NV_SATFINITE, __NV_E4M3);
    return code == 0 ? 0x20 : code;  // 0.125
  }
  __device__ float value_of(std::uint8_t code) const {
    return __fdiv_rn(__half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3))), global_scale);
  }
};

struct Mxfp4 {
  static constexpr int lanes = static_cast<int>(mxfp4_group) / columns;

  __device__ std::uint8_t scale_of(float largest) const {
    const unsigned bits = __float_as_uint(largest);
    if (bits >= 0x7f800000u) return 255;
    const unsigned exponent = (bits + 0x200000u) >> 23;
    return static_cast<std::uint8_t>(exponent < 2u ? 0u : exponent - 2u);
  }
  __device__ float value_of(std::uint8_t code) const {
    if (code == 255) return __uint_as_float(0x7fc00000u);
    return __uint_as_float(code == 0 ? 0x400000u : unsigned{code} << 23);
  }
};

// vectors: rows of w can be read in 16-byte pieces; otherwise element by element.
template <bool vectors, class T>
__device__ void load_columns(const T* from, float (&value)[columns]) {
  if constexpr (vectors)
    load(from, value);
  else
    for (int i = 0; i < columns; ++i) value[i] = widen(from[i]);
}

template <bool vectors, class T>
__device__ void store_columns(const float (&value)[columns], T* to) {
  if constexpr (vectors)
    store(value, to);
  else
    for (int i = 0; i < columns; ++i) narrow(value[i], to[i]);
}

template <bool vectors, class T, class Format>
__global__ void quantize_kernel(const T* w, std::int64_t stride, std::int64_t rows,
                                std::int64_t cols, Format format, Matrix<std::uint8_t> packed,
                                Matrix<std::uint8_t> scale) {
  const std::int64_t col = first_column(columns);
  const bool inside =
      col < cols;  // the same for all lanes of a group; every lane takes part in the exchange
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float value[columns] = {};
    if (inside) load_columns<vectors>(w + row * stride + col, value);
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < columns; ++i) largest = max(largest, magnitude_bits(value[i]));
#pragma unroll
    for (int step = Format::lanes / 2; step > 0; step /= 2)
      largest = max(largest, __shfl_xor_sync(all_lanes, largest, step));
    if (!inside) continue;
    const std::uint8_t code = format.scale_of(__uint_as_float(largest));
    const float divisor = format.value_of(code);
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < columns; ++i) word |= encode(__fdiv_rn(value[i], divisor)) << (4 * i);
    std::uint8_t* to = packed.data + row * packed.stride + col / 2;
    if constexpr (vectors)
      *reinterpret_cast<unsigned*>(to) = word;
    else
      for (int i = 0; i < columns / 2; ++i) to[i] = static_cast<std::uint8_t>(word >> (8 * i));
    if (threadIdx.x % Format::lanes == 0)
      scale.data[row * scale.stride + col / (columns * Format::lanes)] = code;
  }
}

template <bool vectors, class T, class Format>
__global__ void dequantize_kernel(Matrix<const std::uint8_t> packed,
                                  Matrix<const std::uint8_t> scale, Format format, T* w,
                                  std::int64_t stride, std::int64_t cols) {
  const std::int64_t col = first_column(columns);
  if (col >= cols) return;
  for (std::int64_t row = blockIdx.y; row < packed.rows; row += gridDim.y) {
    const std::uint8_t* from = packed.data + row * packed.stride + col / 2;
    unsigned word = 0;
    if constexpr (vectors)
      word = *reinterpret_cast<const unsigned*>(from);
    else
      for (int i = 0; i < columns / 2; ++i) word |= unsigned{from[i]} << (8 * i);
    const float factor =
        format.value_of(scale.data[row * scale.stride + col / (columns * Format::lanes)]);
    float value[columns];
#pragma unroll
    for (int i = 0; i < columns; ++i) value[i] = __fmul_rn(decode(word >> (4 * i) & 15u), factor);
    store_columns<vectors>(value, w + row * stride + col);
  }
}

template <class Format>
void quantize(ConstTensor w, Format format, Matrix<std::uint8_t> packed, Matrix<std::uint8_t> scale,
              Stream& stream) {
  if (w.size() == 0) return;
  const dim3 grid = row_grid(w.rows, w.cols, columns);
  const cudaStream_t queue = stream.cuda().stream;
  with_elements(w, [&](auto* data) {
    if (vectorizable(w) && rows_aligned(packed, 4))
      quantize_kernel<true>
          <<<grid, row_threads, 0, queue>>>(data, w.stride, w.rows, w.cols, format, packed, scale);
    else
      quantize_kernel<false>
          <<<grid, row_threads, 0, queue>>>(data, w.stride, w.rows, w.cols, format, packed, scale);
  });
  check_launch();
}

template <class Format>
void dequantize(Matrix<const std::uint8_t> packed, Matrix<const std::uint8_t> scale, Format format,
                Tensor w, Stream& stream) {
  if (w.size() == 0) return;
  const dim3 grid = row_grid(w.rows, w.cols, columns);
  const cudaStream_t queue = stream.cuda().stream;
  with_elements(w, [&](auto* data) {
    if (vectorizable(w) && rows_aligned(packed, 4))
      dequantize_kernel<true>
          <<<grid, row_threads, 0, queue>>>(packed, scale, format, data, w.stride, w.cols);
    else
      dequantize_kernel<false>
          <<<grid, row_threads, 0, queue>>>(packed, scale, format, data, w.stride, w.cols);
  });
  check_launch();
}

template <int count, class T>
__global__ void absmax_kernel(const T* w, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                              unsigned* largest) {
  const std::int64_t col = first_column(count);
  unsigned bits = 0;
  for (std::int64_t row = blockIdx.y; row < rows && col < cols; row += gridDim.y) {
    float value[count];
    load(w + row * stride + col, value);
#pragma unroll
    for (int i = 0; i < count; ++i) bits = max(bits, magnitude_bits(value[i]));
  }
  bits = __reduce_max_sync(all_lanes, bits);
  if (threadIdx.x % warp == 0) atomicMax(largest, bits);
}

}  // namespace

void accumulate_absmax(ConstTensor w, Matrix<float> largest, Stream& stream) {
  if (w.size() == 0) return;
  with_elements(w, [&](auto* data) {
    with_count(vectorizable(w), [&](auto count) {
      dim3 grid = row_grid(w.rows, w.cols, count());
      grid.y = std::min(grid.y, 512u);  // few atomics: every thread goes over many rows
      absmax_kernel<count()><<<grid, row_threads, 0, stream.cuda().stream>>>(
          data, w.stride, w.rows, w.cols, reinterpret_cast<unsigned*>(largest.data));
    });
  });
  check_launch();
}

void quantize_nvfp4(ConstTensor w, float global_scale, Matrix<std::uint8_t> packed,
                    Matrix<std::uint8_t> scale, Stream& stream) {
  quantize(w, Nvfp4{global_scale}, packed, scale, stream);
}

void dequantize_nvfp4(Matrix<const std::uint8_t> packed, Matrix<const std::uint8_t> scale,
                      float global_scale, Tensor w, Stream& stream) {
  dequantize(packed, scale, Nvfp4{global_scale}, w, stream);
}

void quantize_mxfp4(ConstTensor w, Matrix<std::uint8_t> packed, Matrix<std::uint8_t> scale,
                    Stream& stream) {
  quantize(w, Mxfp4{}, packed, scale, stream);
}

void dequantize_mxfp4(Matrix<const std::uint8_t> packed, Matrix<const std::uint8_t> scale, Tensor w,
                      Stream& stream) {
  dequantize(packed, scale, Mxfp4{}, w, stream);
}

}  // namespace qpipe::cuda
