// The matrix products of several linear layers at once.
#pragma once

#include <vector>

#include "kernels/stream.h"

namespace qpipe {

// y = x Wᵀ + b.   x [rows, in], weight [out, in], bias [1, out] or empty, y [rows, out]; shapes
// differ between products.
struct Product {
  ConstTensor x, weight, bias;
  Tensor y;
};

// All products, each as linear() says (kernels/linear.h): types, accumulation in float32, one
// rounding. All y have one type. Products without rows are left out. x and y may be ranges of
// columns; no y overlaps another or what a product reads.
// The bits of a product depend on its own shapes, strides and values, and not on the products
// beside it or their order. On the CPU it is one linear() after the other; on CUDA that is so where
// y is float32 or where rows of x, weight or y don't begin and end at multiples of 16 bytes, and
// the others are one kernel on Hopper (kernels/linears_wgmma.h), elsewhere one call of cuBLAS, for
// which each takes 24 bytes of device memory.
void linears(const std::vector<Product>& products, Stream& stream);

namespace cuda {
decltype(qpipe::linears) linears;
}  // namespace cuda

}  // namespace qpipe
