// Blocks of activations, [rows, up to width] each, in the device's memory, in page-locked host
// memory or in a file.
//
// Work is done on the device, block after block. What lies elsewhere comes into a few device
// windows and goes out again while the device works on the block before: read the next block, work
// on this one, write the last one.
#pragma once

#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/copy_queue.h"
#include "stages/access.h"
#include "stages/places.h"

namespace qpipe {

class BlockStore {
 public:
  BlockStore() = default;
  // Contents undefined. folder: for Place::disk; the file has no name there and its space is taken
  // at once. Host memory is taken when a block is written first. Throws std::system_error naming
  // the folder.
  BlockStore(std::vector<std::int64_t> rows, std::int64_t width, Place place,
             const std::string& folder, Stream& stream);

  std::size_t blocks() const { return rows_.size(); }
  std::int64_t rows(std::size_t block) const { return rows_.at(block); }
  std::int64_t width() const { return width_; }
  Place place() const { return place_; }

 private:
  friend class BlockPass;
  friend void read_block(const BlockStore& store, std::size_t block, Tensor to, Stream& stream);
  friend void write_block(BlockStore& store, std::size_t block, ConstTensor from, Stream& stream);
  friend void copy_blocks(const BlockStore& from, BlockStore& to, Stream& stream);

  class File {
   public:
    File() = default;
    File(const std::string& folder, std::size_t bytes);
    File(File&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
    File& operator=(File&& other) noexcept {
      std::swap(descriptor_, other.descriptor_);
      return *this;
    }
    ~File();
    void read(void* to, std::size_t bytes, std::size_t at) const;
    void write(const void* from, std::size_t bytes, std::size_t at) const;

   private:
    int descriptor_ = -1;
  };
  // Not on the device: what a pass needs besides its windows.
  struct Transfer {
    CopyQueue in;
    CopyQueue out;
    std::vector<HostBuffer> host;     // Place::host: one for each block
    File file;                        // Place::disk
    std::vector<HostBuffer> staging;  // page-locked, between file and device
  };
  std::size_t bytes(std::size_t block, std::int64_t cols) const;
  void* on_device(std::size_t block) const;
  unsigned char* on_host(std::size_t block, const Stream& stream) const;
  unsigned char* staging(std::size_t slot, const Stream& stream) const;

  std::vector<std::int64_t> rows_;
  std::int64_t width_ = 0;
  std::size_t block_bytes_ =
      0;  // a multiple of 256, so that libraries choose the same algorithms for every block
  Place place_ = Place::device;
  DType dtype_ = DType::f32;
  Buffer device_;
  std::unique_ptr<Transfer> transfer_;
};

// One pass over some blocks of a store, in the given order: begin, work on the stream, end, for
// each; then finish. One pass at a time.
class BlockPass {
 public:
  // cols: columns that the blocks have. A const store can only be read.
  BlockPass(BlockStore& store, Access access, std::vector<std::size_t> order, std::int64_t cols,
            Stream& stream);
  BlockPass(const BlockStore& store, std::vector<std::size_t> order, std::int64_t cols,
            Stream& stream);  // Access::read
  ~BlockPass();
  BlockPass(const BlockPass&) = delete;
  BlockPass& operator=(const BlockPass&) = delete;

  Tensor
  begin();  // the next block, [rows, cols], memory for `width` columns unless it is only read
  void end(std::int64_t cols);  // the columns that it has now
  void finish();                // all is where it belongs

 private:
  BlockPass(Access access, const BlockStore& store, std::vector<std::size_t> order,
            std::int64_t cols, Stream& stream);
  struct Window {
    Buffer memory;
    Event arrived;  // its block is in it
    Event worked;
    Event free;  // for the next block
    std::future<void> file;
  };
  bool reads() const { return access_ == Access::read || access_ == Access::update; }
  bool writes() const { return access_ == Access::write || access_ == Access::update; }
  Window& window(std::size_t turn) { return windows_[turn % windows_.size()]; }
  void fetch(std::size_t turn);

  const BlockStore& store_;
  Access access_;
  std::vector<std::size_t> order_;
  std::int64_t cols_;
  Stream& stream_;
  std::vector<Window> windows_;
  std::size_t turn_ = 0;
};

// Single blocks, in stream order. to, from: contiguous [rows, cols] on the device, at most `width`
// columns.
void read_block(const BlockStore& store, std::size_t block, Tensor to, Stream& stream);
void write_block(BlockStore& store, std::size_t block, ConstTensor from, Stream& stream);

// to ← from, stores of the same blocks at the same place.
void copy_blocks(const BlockStore& from, BlockStore& to, Stream& stream);

// 0, 1, … count − 1.
std::vector<std::size_t> all_blocks(std::size_t count);

}  // namespace qpipe
