#include "kernels/stream.h"

#include <cblas.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "kernels/stream_cuda.h"

namespace qpipe {

namespace {
constexpr std::size_t alignment = 256;
}

Stream::Stream(Backend backend, int device) : backend_(backend), device_(device) {
  openblas_set_num_threads(1);  // kernels call BLAS from OpenMP threads, on fixed tiles
  if (backend_ == Backend::cpu) return;
  if constexpr (has_cuda)
    handles_.reset(cuda::create_handles(device));
  else
    throw std::runtime_error("this build of qpipe has no CUDA support");
}

Stream::~Stream() = default;

void Stream::DestroyHandles::operator()(CudaHandles* handles) const {
  if constexpr (has_cuda) cuda::destroy_handles(handles);
}

std::string Stream::device_name() const {
  if constexpr (has_cuda)
    if (on_cuda()) return cuda::device_name(device_);
  return "CPU";
}

void Stream::synchronize() {
  if constexpr (has_cuda)
    if (on_cuda()) cuda::synchronize(*this);
}

void Stream::adopt_thread() const {
  if constexpr (has_cuda)
    if (on_cuda()) cuda::use_device(device_);
}

void Stream::count(std::ptrdiff_t bytes) {
  in_use_ = static_cast<std::size_t>(static_cast<std::ptrdiff_t>(in_use_) + bytes);
  peak_ = std::max(peak_, in_use_);
}

void Stream::check_limit(std::size_t bytes) const {
  if (limit_ == 0 || in_use_ + bytes <= limit_) return;
  throw std::runtime_error("beyond this rank's limit of device memory: " + std::to_string(bytes) + " bytes asked, " +
                           std::to_string(in_use_) + " in use, limit " + std::to_string(limit_));
}

int cuda_device_count() {
  if constexpr (has_cuda) return cuda::device_count();
  return 0;
}

Buffer::Buffer(std::size_t bytes, Stream& stream) : bytes_(bytes), stream_(&stream) {
  stream.check_limit(bytes);
  const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  if constexpr (has_cuda)
    if (stream.on_cuda()) data_ = cuda::allocate(rounded, stream);
  if (!stream.on_cuda()) data_ = std::aligned_alloc(alignment, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  stream.count(static_cast<std::ptrdiff_t>(bytes_));
}

void Buffer::release() noexcept {
  if (data_ == nullptr) return;
  stream_->count(-static_cast<std::ptrdiff_t>(bytes_));
  if constexpr (has_cuda)
    if (stream_->on_cuda()) cuda::release(data_, *stream_);
  if (!stream_->on_cuda()) std::free(data_);
  data_ = nullptr;
}

HostBuffer::HostBuffer(std::size_t bytes, const Stream& stream) : bytes_(bytes) {
  const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  void* data = nullptr;
  if constexpr (has_cuda)
    if (stream.on_cuda()) data = cuda::allocate_host(rounded, stream.device());
  if (!stream.on_cuda()) data = std::aligned_alloc(alignment, rounded);
  if (data == nullptr) throw std::bad_alloc();
  data_ = std::unique_ptr<unsigned char, Release>(static_cast<unsigned char*>(data), Release{stream.on_cuda()});
}

void HostBuffer::Release::operator()(unsigned char* data) const {
  if constexpr (has_cuda)
    if (page_locked) return cuda::release_host(data);
  std::free(data);
}

void copy_to_device(void* device, const void* host, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::copy(device, host, bytes, true, stream);
  std::memcpy(device, host, bytes);
}

void copy_to_host(void* host, const void* device, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::copy(host, device, bytes, true, stream);
  std::memcpy(host, device, bytes);
}

void copy_on_device(void* to, const void* from, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::copy(to, from, bytes, false, stream);
  std::memmove(to, from, bytes);
}

void fill_zero(void* device, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::fill_zero(device, bytes, stream);
  std::memset(device, 0, bytes);
}

}  // namespace qpipe
