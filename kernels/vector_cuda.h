// Reading and writing `count` neighbouring elements of a row as float32: one 16-byte access for
// count = 8 and a 16-bit type (two for float32), element by element otherwise. Included by .cu
// files only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

#include "kernels/head_slices.h"
#include "kernels/tensor.h"

namespace qpipe::cuda {

inline constexpr int vector_elements = 8;
inline constexpr int row_threads = 256;  // block size of the kernels that launch over row_grid

inline __device__ float widen(float x) { return x; }
inline __device__ float widen(__half x) { return __half2float(x); }
inline __device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
inline __device__ void narrow(float x, float& out) { out = x; }
inline __device__ void narrow(float x, __half& out) { out = __float2half_rn(x); }
inline __device__ void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }

template <class T, int count>
struct alignas(count == vector_elements ? 16 : alignof(T)) Packet {
  T element[count];
};

template <int count, class T>
__device__ void load(const T* from, float (&value)[count]) {
  const auto packet = *reinterpret_cast<const Packet<T, count>*>(from);
#pragma unroll
  for (int i = 0; i < count; ++i) value[i] = widen(packet.element[i]);
}

template <int count, class T>
__device__ void store(const float (&value)[count], T* to) {
  Packet<T, count> packet;
#pragma unroll
  for (int i = 0; i < count; ++i) narrow(value[i], packet.element[i]);
  *reinterpret_cast<Packet<T, count>*>(to) = packet;
}

inline bool aligned16(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

// Whether every row can be read in vectors of eight elements.
template <class Void>
bool vectorizable(const AnyMatrix<Void>& matrix) {
  return aligned16(matrix.data) && matrix.cols % vector_elements == 0 &&
         (matrix.rows <= 1 || matrix.stride % vector_elements == 0);
}

// The same of every slice of every row.
template <class Void>
bool vectorizable(const AnyMatrix<Void>& matrix, const HeadSlices& slices) {
  return vectorizable(matrix.col_range(0, slices.head_dim)) &&
         (slices.heads == 1 || slices.stride % vector_elements == 0);
}

// Elementwise kernels: blockIdx.x and threadIdx.x choose `count` columns, blockIdx.y strides over
// the rows.
inline dim3 row_grid(std::int64_t rows, std::int64_t cols, int count) {
  const std::int64_t columns_per_block = std::int64_t{row_threads} * count;
  return {static_cast<unsigned>((cols + columns_per_block - 1) / columns_per_block),
          static_cast<unsigned>(std::min<std::int64_t>(rows, 65535))};
}

inline __device__ std::int64_t first_column(int count) {
  return (std::int64_t{blockIdx.x} * row_threads + threadIdx.x) * count;
}

}  // namespace qpipe::cuda
