#include <cstdlib>
#include <new>
#include <stdexcept>

#include "kernels/cuda_handles.h"
#include "kernels/stream_cuda.h"
#include "kernels/system_fault.h"

namespace qpipe {

namespace {

std::string described(const char* library, const char* message, std::source_location where) {
  return std::string(library) + ": " + message + " (" + where.file_name() + ":" +
         std::to_string(where.line()) + ")";
}

// Not qpipe's: another program took the memory, a card or its driver is at fault.
bool is_of_the_machine(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorDeviceUninitialized:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorOperatingSystem: return true;
    default: return false;
  }
}

}  // namespace

void check(cudaError_t status, std::source_location where) {
  if (status == cudaSuccess) return;
  const std::string text = described("CUDA", cudaGetErrorString(status), where);
  if (is_of_the_machine(status)) throw SystemFault(text);
  throw std::runtime_error(text);
}
void check(cublasStatus_t status, std::source_location where) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string text = described("cuBLAS", cublasGetStatusString(status), where);
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw SystemFault(text);
  throw std::runtime_error(text);
}

namespace {
constexpr std::size_t cublas_workspace_bytes = std::size_t{32} << 20;
}  // namespace

CudaHandles::CudaHandles(bool urgent) {
  int least = 0;
  int greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? greatest : least));
}

CudaHandles::~CudaHandles() {
  cudaStreamSynchronize(stream);
  if (cublas_ != nullptr) cublasDestroy(cublas_);
  if (cublas_workspace_ != nullptr) cudaFree(cublas_workspace_);
  cudaStreamDestroy(stream);
}

cublasHandle_t CudaHandles::cublas() {
  if (cublas_ != nullptr) return cublas_;
  check(cudaMalloc(&cublas_workspace_, cublas_workspace_bytes));
  check(cublasCreate(&cublas_));
  check(cublasSetStream(cublas_, stream));
  check(cublasSetWorkspace(cublas_, cublas_workspace_, cublas_workspace_bytes));
  return cublas_;
}

namespace cuda {

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string device_name(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

CudaHandles* create_handles(int device, bool urgent) {
  check(cudaSetDevice(device));
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, device));
  std::uint64_t keep_all =
      UINT64_MAX;  // freed blocks stay in the pool: no cudaMalloc inside the loop
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_all));
  return new CudaHandles(urgent);
}

void destroy_handles(CudaHandles* handles) noexcept { delete handles; }

void use_device(int device) { check(cudaSetDevice(device)); }

void synchronize(Stream& stream) {
  wait_for_device(
      *stream.waiter(), [&] { return cudaStreamQuery(stream.cuda().stream); },
      [&] { return cudaStreamSynchronize(stream.cuda().stream); });
}

namespace {

// Blocks that are freed stay in the pool, but a block of another size may not find its place among
// them. Under a limit the pool gives back what is free before it grows beyond.
void make_room(std::size_t bytes, Stream& stream) {
  constexpr std::size_t small = std::size_t{64} << 20;
  if (stream.limit() == 0 || bytes < small) return;
  cudaMemPool_t pool = nullptr;
  std::uint64_t reserved = 0;
  check(cudaDeviceGetDefaultMemPool(&pool, stream.device()));
  check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved));
  if (reserved + bytes <= stream.limit()) return;
  synchronize(stream);  // only then are freed blocks the pool's
  check(cudaMemPoolTrimTo(pool, 0));
}

}  // namespace

void* allocate(std::size_t bytes, Stream& stream) {
  make_room(bytes, stream);
  void* data = nullptr;
  const cudaError_t status = cudaMallocAsync(&data, bytes, stream.cuda().stream);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes));
    throw SystemFault("out of GPU memory: " + std::to_string(bytes >> 20) + " MiB asked, " +
                      std::to_string(free_bytes >> 20) + " of " +
                      std::to_string(total_bytes >> 20) + " MiB free, " +
                      std::to_string(stream.bytes_in_use() >> 20) +
                      " MiB held by this rank; end other programs on this GPU, or set memory.gpu "
                      "to what they leave");
  }
  check(status);
  return data;
}

void page_lock(void* data, std::size_t bytes, int device) {
  check(cudaSetDevice(device));  // a new thread has device 0
  const cudaError_t status = cudaHostRegister(data, bytes, cudaHostRegisterDefault);
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw SystemFault("cannot page-lock " + std::to_string(bytes >> 20) +
                    " MiB of host memory: " + cudaGetErrorString(status) +
                    "; raise the limit of locked memory (ulimit -l) or free memory");
}

void page_unlock(void* data, int device) noexcept {
  cudaSetDevice(device);
  cudaHostUnregister(data);
}

void release(void* data, Stream& stream) noexcept { cudaFreeAsync(data, stream.cuda().stream); }

void copy(void* to, const void* from, std::size_t bytes, bool wait, Stream& stream) {
  // To or from memory that is not page-locked CUDA waits for the stream inside of the call.
  if (wait && *stream.waiter()) synchronize(stream);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.cuda().stream));
  if (wait) synchronize(stream);
}

void fill_zero(void* data, std::size_t bytes, Stream& stream) {
  check(cudaMemsetAsync(data, 0, bytes, stream.cuda().stream));
}

}  // namespace cuda
}  // namespace qpipe
