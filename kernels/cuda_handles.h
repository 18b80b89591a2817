// CUDA side of Stream, and checks of the libraries' status codes. Included by .cu files only.
#pragma once

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <source_location>

#include "kernels/stream.h"

namespace qpipe {

// cuBLAS starts when it is first asked for: many streams and many runs do without.
class CudaHandles {
 public:
  explicit CudaHandles(bool urgent);
  ~CudaHandles();
  CudaHandles(const CudaHandles&) = delete;
  CudaHandles& operator=(const CudaHandles&) = delete;

  cudaStream_t stream = nullptr;
  cublasHandle_t cublas();

 private:
  cublasHandle_t cublas_ = nullptr;
  void* cublas_workspace_ = nullptr;  // fixed, so that cuBLAS chooses the same algorithm every time
};

// Throw with the library's message and the caller's position: SystemFault where the device, its
// driver or its memory fails, std::runtime_error otherwise.
void check(cudaError_t status, std::source_location where = std::source_location::current());
void check(cublasStatus_t status, std::source_location where = std::source_location::current());
// Returns when query() (cudaStreamQuery, cudaEventQuery) is no longer cudaErrorNotReady: by the
// waiter, or without one by block().
template <class Query, class Block>
void wait_for_device(const Waiter& waiter, Query query, Block block,
                     std::source_location where = std::source_location::current()) {
  if (!waiter) return check(block(), where);
  waiter([&] {
    const cudaError_t status = query();
    if (status != cudaErrorNotReady) check(status, where);
    if (status == cudaErrorNotReady) cudaGetLastError();  // the query leaves it behind
    return status == cudaSuccess;
  });
}
inline void check_launch(std::source_location where = std::source_location::current()) {
  check(cudaGetLastError(), where);
}

}  // namespace qpipe
