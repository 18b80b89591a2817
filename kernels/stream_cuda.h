// The CUDA half of Stream and Buffer, free of CUDA types so that host code can name it
// (stream_cuda.cu).
#pragma once

#include "kernels/stream.h"

namespace qpipe::cuda {

int device_count();
std::string device_name(int device);
CudaHandles* create_handles(int device, bool urgent);
void destroy_handles(CudaHandles* handles) noexcept;
void use_device(int device);
void synchronize(Stream& stream);
void* allocate(std::size_t bytes, Stream& stream);
// Host memory that is there already, from any thread.
void page_lock(void* data, std::size_t bytes, int device);
void page_unlock(void* data, int device) noexcept;
void release(void* data, Stream& stream) noexcept;
// wait: return only when the copy is done (for host memory that the caller may reuse).
void copy(void* to, const void* from, std::size_t bytes, bool wait, Stream& stream);
void fill_zero(void* data, std::size_t bytes, Stream& stream);

}  // namespace qpipe::cuda
