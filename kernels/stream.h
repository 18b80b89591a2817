// Where work runs: a backend chosen at run time, its memory, and an ordered queue of operations.
//
// Every kernel has one header with its contract, NAME.cpp (CPU, and the choice of backend) and
// NAME.cu (CUDA). On the CPU an operation is done when the call returns; on CUDA it is queued, and
// synchronize() waits.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels/tensor.h"

#ifndef QPIPE_CUDA
#define QPIPE_CUDA 0
#endif

namespace qpipe {

inline constexpr bool has_cuda = QPIPE_CUDA != 0;

enum class Backend { cpu, cuda };

// How a thread waits for a device: calls done() until it is true, and throws when that takes too
// long or can never be (launch/nccl_waits.h: another rank's part of a collective). From any thread.
using Waiter = std::function<void(const std::function<bool()>& done)>;

class CudaHandles;  // kernels/cuda_handles.h: stream, cuBLAS, cuSOLVER
class HostMemory;   // kernels/stream.cpp: what HostBuffers take and give back

class Stream {
 public:
  // device: index of the CUDA device, ignored on the CPU. urgent: its kernels go before those that
  // other streams have queued. Throws std::runtime_error when the device cannot be used.
  Stream(Backend backend, int device, bool urgent = false);
  // Another queue of the same device, for another thread: they count, limit and keep their memory
  // together. On CUDA it keeps what its Buffers give back for the next ones of the same size: many
  // threads wait longer for the driver's allocations than for their work. What is kept counts as in
  // use, until it is needed for something else.
  static std::unique_ptr<Stream> beside(const Stream& first);
  void release_kept() { memory_->release_kept(nullptr); }  // of all of them
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Backend backend() const { return backend_; }
  bool on_cuda() const { return backend_ == Backend::cuda; }
  int device() const { return device_; }
  // Element type of activations and of weights in the forward pass.
  DType compute_dtype() const { return on_cuda() ? DType::bf16 : DType::f32; }
  std::string device_name()
      const;  // of a CPU: the kernels that OpenBLAS has chosen, on which the last bits depend
  // Returns when all that is queued is done, by the waiter if there is one.
  void synchronize();
  // From now on, for all waits of the host for what is queued: synchronize(), blocking copies, and
  // those of the stream's CopyQueues and Events. Without one they last as long as the work does.
  void set_waiter(Waiter waiter) { *waiter_ = std::move(waiter); }
  std::shared_ptr<const Waiter> waiter() const { return waiter_; }
  // For a thread other than the one that made the stream, before it uses it: threads start on CUDA
  // device 0. One thread at a time.
  void adopt_thread() const;
  CudaHandles& cuda() const { return *handles_; }

  // Device memory taken through Buffer on this stream and on those beside it, in bytes.
  std::size_t bytes_in_use() const { return memory_->in_use; }
  std::size_t bytes_peak() const { return memory_->peak; }
  // What a Buffer must not take it beyond, in bytes; 0: no limit.
  std::size_t limit() const { return memory_->limit; }
  void set_limit(std::size_t bytes) { memory_->limit = bytes; }

 private:
  friend class Buffer;
  friend class HostBuffer;
  // Of all queues that stand beside one another.
  struct Memory {
    std::atomic<std::size_t> in_use = 0;
    std::atomic<std::size_t> peak = 0;
    std::atomic<std::size_t> limit = 0;
    std::shared_ptr<HostMemory> host;
    void take(std::size_t bytes);
    void give_back(std::size_t bytes) { in_use -= bytes; }

    std::mutex mutex;  // of what queues keep
    std::map<std::pair<Stream*, std::size_t>, std::vector<void*>> kept;
    void keep(void* data, std::size_t bytes, Stream& stream);
    void* take_kept(std::size_t bytes, Stream& stream);  // null: there is none
    void release_kept(const Stream* of) noexcept;        // null: of all
  };
  Stream(Backend backend, int device, bool urgent, std::shared_ptr<Memory> memory);

  Backend backend_;
  int device_;
  bool keeps_ = false;
  std::shared_ptr<Memory> memory_;
  std::shared_ptr<Waiter> waiter_ = std::make_shared<Waiter>();  // shared with queues and events
  struct DestroyHandles {
    void operator()(CudaHandles* handles) const;
  };
  std::unique_ptr<CudaHandles, DestroyHandles> handles_;
};

// Number of CUDA devices this process sees; 0 without CUDA or without a driver.
int cuda_device_count();

// Memory on the stream's device, 256-byte aligned, uninitialised, released in stream order.
// The stream must outlive it. Throws std::bad_alloc on the CPU, std::runtime_error with sizes on
// CUDA and beyond the stream's limit.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::size_t bytes, Stream& stream);
  ~Buffer() { release(); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void release() noexcept;
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(stream_, other.stream_);
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Stream* stream_ = nullptr;
};

// Bytes in host memory. Copies share them.
class HostBuffer {
 public:
  HostBuffer() = default;
  // Memory that the stream's device copies from and to at full speed (page-locked on CUDA),
  // uninitialised. From any thread. The stream keeps what is given back for the next buffer,
  // because page-locking memory anew takes as long as reading it from disk.
  HostBuffer(std::size_t bytes, const Stream& stream);
  // Takes over a vector's memory.
  HostBuffer(std::vector<unsigned char> bytes);

  unsigned char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  unsigned char* begin() const { return data_; }
  unsigned char* end() const { return data_ + bytes_; }

 private:
  unsigned char* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::shared_ptr<void> owner_;
};

// An owned matrix on a stream's device; converts to its view.
template <class T>
struct Array {
  Buffer memory;
  Matrix<T> view;

  Array() = default;
  Array(std::int64_t rows, std::int64_t cols, Stream& stream)
      : memory(static_cast<std::size_t>(rows * cols) * sizeof(T), stream),
        view(static_cast<T*>(memory.data()), rows, cols) {}
  operator Matrix<T>() const { return view; }
  operator Matrix<const T>() const { return view; }
  bool empty() const { return view.empty(); }
};

struct TensorArray {
  Buffer memory;
  Tensor view;

  TensorArray() = default;
  TensorArray(DType dtype, std::int64_t rows, std::int64_t cols, Stream& stream)
      : memory(static_cast<std::size_t>(rows * cols) * size_of(dtype), stream),
        view(memory.data(), dtype, rows, cols) {}
  operator Tensor() const { return view; }
  operator ConstTensor() const { return view; }
  bool empty() const { return view.empty(); }
};

// Copies between host and the stream's device. The host side may be reused when the call returns.
void copy_to_device(void* device, const void* host, std::size_t bytes, Stream& stream);
void copy_to_host(void* host, const void* device, std::size_t bytes, Stream& stream);
void copy_on_device(void* to, const void* from, std::size_t bytes, Stream& stream);
void fill_zero(void* device, std::size_t bytes, Stream& stream);

}  // namespace qpipe
