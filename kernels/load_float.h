// One element of a weight of any float type, on the host.
#pragma once

#include "kernels/tensor.h"

namespace qpipe {

// Calls use(Matrix<const T>) with the element type of w: float, f16 or bf16. Throws std::invalid_argument for other types.
template <class Use>
void with_float_type(ConstTensor w, Use use) {
  switch (w.dtype) {
    case DType::f32: return use(w.as<const float>());
    case DType::f16: return use(w.as<const f16>());
    case DType::bf16: return use(w.as<const bf16>());
    default: throw std::invalid_argument("weights must be f32, f16 or bf16");
  }
}

}  // namespace qpipe
