// The CUDA half of device.h (device_cuda.cu).
#pragma once

#include <string>

namespace qpipe::cuda {

// 32 hex digits, the same for every process that uses this GPU.
std::string gpu_uuid(int device);

}  // namespace qpipe::cuda
