// The grouped products of linears() on Hopper (kernels/wgmma_cuda.h). Included by .cu files only.
#pragma once

#include <vector>

#include "kernels/linears.h"

namespace qpipe::cuda {

// Whether this device, and this build for it, have them.
bool has_linears_wgmma(Stream& stream);

// All products: y and x, weight and bias bf16; rows begin and end at multiples of 16 bytes. A tile
// of 128 × 256 outputs is summed by one thread block over the whole of k in order.
void linears_wgmma(const std::vector<Product>& products, Stream& stream);

}  // namespace qpipe::cuda
