// ln(1 + e^x) on the device. Included by .cu files only.
#pragma once

namespace qpipe::cuda {

inline __device__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

}  // namespace qpipe::cuda
