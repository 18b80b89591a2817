// Weights of a type known at run time, on the host: shared by float8.cpp and float4.cpp.
#pragma once

#include <algorithm>

#include "kernels/tensor.h"

namespace qpipe {

// max|x| as the largest bit pattern without sign: NaN is above infinity, so it is never lost.
template <class T>
std::uint32_t largest_magnitude(const T* x, std::int64_t count) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i)
    largest = std::max(largest, std::bit_cast<std::uint32_t>(to_float(x[i])) & 0x7fffffffu);
  return largest;
}

inline void require_weights(DType dtype, const char* message) {
  require(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, message);
}

// operation(typed view) for the element type of a matrix of weights.
template <class Void, class Operation>
void with_type(const AnyMatrix<Void>& w, Operation operation) {
  using Float = std::conditional_t<std::is_const_v<Void>, const float, float>;
  using Half = std::conditional_t<std::is_const_v<Void>, const f16, f16>;
  using Brain = std::conditional_t<std::is_const_v<Void>, const bf16, bf16>;
  switch (w.dtype) {
    case DType::f16: return operation(w.template as<Half>());
    case DType::bf16: return operation(w.template as<Brain>());
    default: return operation(w.template as<Float>());
  }
}

inline void store_rounded(float value, float& out) { out = value; }
inline void store_rounded(float value, f16& out) { out = to_f16(value); }
inline void store_rounded(float value, bf16& out) { out = to_bf16(value); }

}  // namespace qpipe
