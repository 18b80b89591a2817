// The CUDA half of device.h (device_cuda.cu).
#pragma once

#include <cstdint>
#include <string>

namespace qpipe::cuda {

// 32 hex digits, the same for every process that uses this GPU.
std::string gpu_uuid(int device);

std::int64_t free_bytes(int device);

// Makes the process's context on it, and leaves a fault to the next one who asks.
void open(int device) noexcept;

}  // namespace qpipe::cuda
