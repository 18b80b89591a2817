#include "kernels/cuda_handles.h"
#include "launch/device_cuda.h"

namespace qpipe::cuda {

std::string gpu_uuid(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device));
  std::string text;
  for (const char byte : properties.uuid.bytes) {
    text += "0123456789abcdef"[static_cast<unsigned char>(byte) >> 4];
    text += "0123456789abcdef"[static_cast<unsigned char>(byte) & 15];
  }
  return text;
}

std::int64_t free_bytes(int device) {
  check(cudaSetDevice(device));
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

void open(int device) noexcept {
  if (cudaSetDevice(device) == cudaSuccess) cudaFree(nullptr);
  cudaGetLastError();
}

}  // namespace qpipe::cuda
