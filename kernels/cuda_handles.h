// CUDA side of Stream, and checks of the libraries' status codes. Included by .cu files only.
#pragma once

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include <source_location>

#include "kernels/stream.h"

namespace qpipe {

struct CudaHandles {
  cudaStream_t stream = nullptr;
  cublasHandle_t cublas = nullptr;
  cusolverDnHandle_t cusolver = nullptr;
  void* cublas_workspace = nullptr;  // fixed, so that cuBLAS chooses the same algorithm every time
};

// Throw std::runtime_error with the library's message and the caller's position.
void check(cudaError_t status, std::source_location where = std::source_location::current());
void check(cublasStatus_t status, std::source_location where = std::source_location::current());
void check(cusolverStatus_t status, std::source_location where = std::source_location::current());
inline void check_launch(std::source_location where = std::source_location::current()) { check(cudaGetLastError(), where); }

}  // namespace qpipe
