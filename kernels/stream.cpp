#include "kernels/stream.h"

#include <cblas.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/alignment.h"
#include "kernels/stream_cuda.h"

namespace qpipe {

namespace {

constexpr std::size_t largest_spare_bytes =
    std::size_t{64} << 20;  // larger ones are kept by those who need them again

constexpr std::size_t page = 4096;
constexpr std::size_t huge_page = std::size_t{2} << 20;

// Makes the pages be there, several at a time. cudaHostAlloc would do it one after the other, at 1
// to 2 GB/s.
void touch(unsigned char* data, std::size_t bytes) {
  const std::size_t count = std::clamp<std::size_t>(
      bytes >> 26, 1, std::clamp(std::thread::hardware_concurrency(), 1U, 8U));
  const auto touch_every = [&](std::size_t first) {
    for (std::size_t at = first * huge_page; at < bytes; at += count * huge_page)
      for (std::size_t i = at; i < std::min(bytes, at + huge_page); i += page) data[i] = 0;
  };
  std::vector<std::thread> others;
  for (std::size_t i = 1; i < count; ++i) others.emplace_back(touch_every, i);
  touch_every(0);
  for (std::thread& other : others) other.join();
}

void* allocate_page_locked(std::size_t bytes, int device) {
  const std::size_t unit = bytes < huge_page ? page : huge_page;
  const std::size_t rounded = (bytes + unit - 1) / unit * unit;
  void* data = std::aligned_alloc(unit, rounded);
  if (data == nullptr) throw std::bad_alloc();
  if (unit == huge_page)
    madvise(data, rounded,
            MADV_HUGEPAGE);  // fewer pages to make and to lock; without them all is the same
  touch(static_cast<unsigned char*>(data), rounded);
  if constexpr (has_cuda) try {
      cuda::page_lock(data, rounded, device);
    } catch (...) {
      std::free(data);
      throw;
    }
  return data;
}

}  // namespace

class HostMemory {
 public:
  struct Block {
    void* data = nullptr;
    std::size_t bytes = 0;
  };

  HostMemory(Backend backend, int device)
      : page_locked_(backend == Backend::cuda), device_(device) {}
  ~HostMemory() {
    for (const auto& [bytes, data] : spare_) release(data);
  }
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  Block take(std::size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = spare_.lower_bound(bytes);
      if (found != spare_.end() && found->first / 4 <= bytes) {
        const Block block{found->second, found->first};
        spare_.erase(found);
        return block;
      }
    }
    Block block{nullptr, aligned(std::max<std::size_t>(bytes, 1))};
    block.data = page_locked_ ? allocate_page_locked(block.bytes, device_)
                              : std::aligned_alloc(alignment, block.bytes);
    if (block.data == nullptr) throw std::bad_alloc();
    return block;
  }

  void give_back(const Block& block) {
    if (block.bytes > largest_spare_bytes) return release(block.data);
    const std::lock_guard lock(mutex_);
    spare_.emplace(block.bytes, block.data);
  }

 private:
  void release(void* data) const {
    if constexpr (has_cuda)
      if (page_locked_) cuda::page_unlock(data, device_);
    std::free(data);
  }

  bool page_locked_;
  int device_;
  std::mutex mutex_;
  std::multimap<std::size_t, void*> spare_;  // by size
};

Stream::Stream(Backend backend, int device, bool urgent)
    : Stream(backend, device, urgent, std::make_shared<Memory>()) {
  memory_->host = std::make_shared<HostMemory>(backend, device);
}

std::unique_ptr<Stream> Stream::beside(const Stream& first) {
  std::unique_ptr<Stream> stream(new Stream(first.backend_, first.device_, false, first.memory_));
  stream->keeps_ = stream->on_cuda();
  return stream;
}

Stream::Stream(Backend backend, int device, bool urgent, std::shared_ptr<Memory> memory)
    : backend_(backend), device_(device), memory_(std::move(memory)) {
  openblas_set_num_threads(1);  // kernels call BLAS from OpenMP threads, on fixed tiles
  if (backend_ == Backend::cpu) return;
  if constexpr (has_cuda)
    handles_.reset(cuda::create_handles(device, urgent));
  else
    throw std::runtime_error("this build of qpipe has no CUDA support");
}

Stream::~Stream() {
  if (keeps_) memory_->release_kept(this);
}

void Stream::DestroyHandles::operator()(CudaHandles* handles) const {
  if constexpr (has_cuda) cuda::destroy_handles(handles);
}

std::string Stream::device_name() const {
  if constexpr (has_cuda)
    if (on_cuda()) return cuda::device_name(device_);
  return std::string("CPU (") + openblas_get_corename() + ")";
}

void Stream::synchronize() {
  if constexpr (has_cuda)
    if (on_cuda()) cuda::synchronize(*this);
}

void Stream::adopt_thread() const {
  if constexpr (has_cuda)
    if (on_cuda()) cuda::use_device(device_);
}

void Stream::Memory::keep(void* data, std::size_t bytes, Stream& stream) {
  const std::lock_guard lock(mutex);
  kept[{&stream, bytes}].push_back(data);
}

void* Stream::Memory::take_kept(std::size_t bytes, Stream& stream) {
  const std::lock_guard lock(mutex);
  const auto found = kept.find({&stream, bytes});
  if (found == kept.end() || found->second.empty()) return nullptr;
  void* data = found->second.back();
  found->second.pop_back();
  return data;
}

void Stream::Memory::release_kept(const Stream* of) noexcept {
  const std::lock_guard lock(mutex);
  for (auto& [place, blocks] : kept) {
    const auto& [stream, bytes] = place;
    if (of != nullptr && of != stream) continue;
    for (void* data : blocks) {
      if constexpr (has_cuda) cuda::release(data, *stream);
      give_back(bytes);
    }
    blocks.clear();
  }
}

void Stream::Memory::take(std::size_t bytes) {
  const std::size_t most = limit;
  std::size_t before = in_use.fetch_add(bytes);
  if (most != 0 && before + bytes > most) {
    release_kept(nullptr);
    before = in_use - bytes;
  }
  if (most != 0 && before + bytes > most) {
    give_back(bytes);
    throw std::runtime_error("beyond this rank's limit of device memory: " + std::to_string(bytes) +
                             " bytes asked, " + std::to_string(before) + " in use, limit " +
                             std::to_string(most));
  }
  std::size_t highest = peak;
  while (before + bytes > highest && !peak.compare_exchange_weak(highest, before + bytes)) {
  }
}

int cuda_device_count() {
  if constexpr (has_cuda) return cuda::device_count();
  return 0;
}

Buffer::Buffer(std::size_t bytes, Stream& stream) : bytes_(bytes), stream_(&stream) {
  if (stream.keeps_) data_ = stream.memory_->take_kept(bytes, stream);
  if (data_ != nullptr) return;
  stream.memory_->take(bytes);
  const std::size_t rounded = aligned(std::max<std::size_t>(bytes, 1));
  try {
    if constexpr (has_cuda)
      if (stream.on_cuda()) data_ = cuda::allocate(rounded, stream);
    if (!stream.on_cuda()) data_ = std::aligned_alloc(alignment, rounded);
    if (data_ == nullptr) throw std::bad_alloc();
  } catch (...) {
    stream.memory_->give_back(bytes);
    throw;
  }
}

void Buffer::release() noexcept {
  if (data_ == nullptr) return;
  if (stream_->keeps_) {
    stream_->memory_->keep(data_, bytes_, *stream_);
    data_ = nullptr;
    return;
  }
  stream_->memory_->give_back(bytes_);
  if constexpr (has_cuda)
    if (stream_->on_cuda()) cuda::release(data_, *stream_);
  if (!stream_->on_cuda()) std::free(data_);
  data_ = nullptr;
}

HostBuffer::HostBuffer(std::size_t bytes, const Stream& stream) : bytes_(bytes) {
  const std::shared_ptr<HostMemory> memory = stream.memory_->host;
  const HostMemory::Block block = memory->take(bytes);
  data_ = static_cast<unsigned char*>(block.data);
  owner_ = std::shared_ptr<void>(block.data, [memory, block](void*) { memory->give_back(block); });
}

HostBuffer::HostBuffer(std::vector<unsigned char> bytes) : bytes_(bytes.size()) {
  auto owner = std::make_shared<std::vector<unsigned char>>(std::move(bytes));
  data_ = owner->data();
  owner_ = std::move(owner);
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
