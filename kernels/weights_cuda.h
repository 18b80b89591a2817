// Weights of a type known at run time, on the device, in packets of eight elements. Included by .cu
// files only.
#pragma once

#include "kernels/cuda_handles.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

// max(|x|) as the largest bit pattern without sign: NaN is above infinity, so it is never lost
// (weights.h).
inline __device__ unsigned magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// operation(pointer to the elements) for a matrix of weights.
template <class Void, class Operation>
void with_elements(const AnyMatrix<Void>& w, Operation operation) {
  using Float = std::conditional_t<std::is_const_v<Void>, const float, float>;
  using Half = std::conditional_t<std::is_const_v<Void>, const __half, __half>;
  using Brain = std::conditional_t<std::is_const_v<Void>, const __nv_bfloat16, __nv_bfloat16>;
  switch (w.dtype) {
    case DType::f16: return operation(static_cast<Half*>(w.data));
    case DType::bf16: return operation(static_cast<Brain*>(w.data));
    default: return operation(static_cast<Float*>(w.data));
  }
}

// operation(std::integral_constant<int, 8>) when `vectors`, with 1 otherwise.
template <class Operation>
void with_count(bool vectors, Operation operation) {
  if (vectors)
    operation(std::integral_constant<int, vector_elements>{});
  else
    operation(std::integral_constant<int, 1>{});
}

template <int count>
struct alignas(count) Bytes {
  std::uint8_t element[count];
};

// Whether every row of codes can be accessed in units of `unit` bytes.
template <class T>
bool rows_aligned(const Matrix<T>& matrix, std::int64_t unit) {
  return reinterpret_cast<std::uintptr_t>(matrix.data) % static_cast<std::uintptr_t>(unit) == 0 &&
         (matrix.rows <= 1 || matrix.stride * static_cast<std::int64_t>(sizeof(T)) % unit == 0);
}

}  // namespace qpipe::cuda
