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

// The libraries start when they are first asked for: many streams and many runs need neither.
class CudaHandles {
 public:
  CudaHandles();
  ~CudaHandles();
  CudaHandles(const CudaHandles&) = delete;
  CudaHandles& operator=(const CudaHandles&) = delete;

  cudaStream_t stream = nullptr;
  cublasHandle_t cublas();
  cusolverDnHandle_t cusolver();

 private:
  cublasHandle_t cublas_ = nullptr;
  cusolverDnHandle_t cusolver_ = nullptr;
  void* cublas_workspace_ = nullptr;  // fixed, so that cuBLAS chooses the same algorithm every time
};

// Throw std::runtime_error with the library's message and the caller's position.
void check(cudaError_t status, std::source_location where = std::source_location::current());
void check(cublasStatus_t status, std::source_location where = std::source_location::current());
void check(cusolverStatus_t status, std::source_location where = std::source_location::current());
inline void check_launch(std::source_location where = std::source_location::current()) { check(cudaGetLastError(), where); }

}  // namespace qpipe
