#include "stages/block_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <system_error>

#include "kernels/alignment.h"

namespace qpipe {

namespace {

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

}  // namespace

BlockStore::File::File(const std::string& folder, std::size_t bytes) {
  std::string path = folder + "/activations-XXXXXX";
  descriptor_ = mkostemp(path.data(), O_CLOEXEC);
  if (descriptor_ < 0) fail(errno, folder + ": cannot make a file for activations");
  unlink(path.c_str());  // nothing is left behind, however the run ends
  const int error = bytes == 0 ? 0 : posix_fallocate(descriptor_, 0, static_cast<off_t>(bytes));
  if (error == 0) return;
  close(std::exchange(descriptor_, -1));
  fail(error, folder + ": no room for " + std::to_string(bytes >> 20) + " MiB of activations");
}

BlockStore::File::~File() {
  if (descriptor_ >= 0) close(descriptor_);
}

void BlockStore::File::read(void* to, std::size_t bytes, std::size_t at) const {
  for (auto* place = static_cast<unsigned char*>(to); bytes > 0;) {
    const ssize_t count = pread(descriptor_, place, bytes, static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(count < 0 ? errno : EIO, "reading activations from disk");
    place += count;
    at += static_cast<std::size_t>(count);
    bytes -= static_cast<std::size_t>(count);
  }
}

void BlockStore::File::write(const void* from, std::size_t bytes, std::size_t at) const {
  for (const auto* place = static_cast<const unsigned char*>(from); bytes > 0;) {
    const ssize_t count = pwrite(descriptor_, place, bytes, static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(count < 0 ? errno : EIO, "writing activations to disk");
    place += count;
    at += static_cast<std::size_t>(count);
    bytes -= static_cast<std::size_t>(count);
  }
}

BlockStore::BlockStore(std::vector<std::int64_t> rows, std::int64_t width, Place place,
                       const std::string& folder, Stream& stream)
    : rows_(std::move(rows)), width_(width), place_(place), dtype_(stream.compute_dtype()) {
  const std::int64_t most_rows = rows_.empty() ? 0 : *std::max_element(rows_.begin(), rows_.end());
  block_bytes_ = aligned(static_cast<std::size_t>(most_rows * width) * size_of(dtype_));
  if (place == Place::device) {
    device_ = Buffer(block_bytes_ * blocks(), stream);
    return;
  }
  transfer_ = std::make_unique<Transfer>();
  transfer_->in = CopyQueue(stream);
  transfer_->out = CopyQueue(stream);
  if (place == Place::host) transfer_->host.resize(blocks());
  if (place == Place::disk) transfer_->file = File(folder, block_bytes_ * blocks());
}

std::size_t BlockStore::bytes(std::size_t block, std::int64_t cols) const {
  return static_cast<std::size_t>(rows(block) * cols) * size_of(dtype_);
}

void* BlockStore::on_device(std::size_t block) const {
  return static_cast<unsigned char*>(device_.data()) + block * block_bytes_;
}

unsigned char* BlockStore::on_host(std::size_t block, const Stream& stream) const {
  HostBuffer& memory = transfer_->host.at(block);
  if (memory.data() == nullptr) memory = HostBuffer(block_bytes_, stream);
  return memory.data();
}

unsigned char* BlockStore::staging(std::size_t slot, const Stream& stream) const {
  std::vector<HostBuffer>& slots = transfer_->staging;
  while (slots.size() <= slot) slots.emplace_back(block_bytes_, stream);
  return slots[slot].data();
}

BlockPass::BlockPass(Access access, const BlockStore& store, std::vector<std::size_t> order,
                     std::int64_t cols, Stream& stream)
    : store_(store), access_(access), order_(std::move(order)), cols_(cols), stream_(stream) {
  require(cols <= store.width_, "BlockPass: more columns than the store has memory for");
  if (store.place_ == Place::device || access == Access::none) return;
  // One to work on, one that comes, one that goes.
  const std::size_t wanted = 1 + (reads() ? 1 : 0) + (writes() ? 1 : 0);
  std::size_t bytes = store.block_bytes_;
  if (access == Access::read) {
    bytes = 0;
    for (const std::size_t block : order_) bytes = std::max(bytes, store.bytes(block, cols));
  }
  windows_.resize(std::min(wanted, order_.size()));
  for (Window& w : windows_) {
    w = {Buffer(bytes, stream), Event(stream), Event(stream), Event(stream), {}};
    record(w.free, stream);  // its memory is there in stream order
  }
}

BlockPass::BlockPass(BlockStore& store, Access access, std::vector<std::size_t> order,
                     std::int64_t cols, Stream& stream)
    : BlockPass(access, store, std::move(order), cols, stream) {}

BlockPass::BlockPass(const BlockStore& store, std::vector<std::size_t> order, std::int64_t cols,
                     Stream& stream)
    : BlockPass(Access::read, store, std::move(order), cols, stream) {}

BlockPass::~BlockPass() {
  if (windows_.empty()) return;
  for (Window& w : windows_)
    if (w.file.valid()) w.file.wait();
  try {  // after a fault, too, the windows' memory is not released under a copy
    store_.transfer_->in.synchronize();
    store_.transfer_->out.synchronize();
  } catch (...) {
  }
}

// Starts what brings the block into its window, as soon as that is free.
void BlockPass::fetch(std::size_t turn) {
  const std::size_t block = order_[turn];
  const std::size_t bytes = store_.bytes(block, cols_);
  Window& w = window(turn);
  if (store_.place_ == Place::disk) {
    if (w.file.valid()) w.file.get();
    w.arrived.wait();  // the staging memory's last block has left it
    unsigned char* to = store_.staging(turn % windows_.size(), stream_);
    w.file = std::async(std::launch::async, [this, to, bytes, at = block * store_.block_bytes_] {
      store_.transfer_->file.read(to, bytes, at);
    });
    return;
  }
  CopyQueue& in = store_.transfer_->in;
  in.wait_for(w.free);
  in.copy(w.memory.data(), store_.on_host(block, stream_), bytes);
  in.record(w.arrived);
}

Tensor BlockPass::begin() {
  const std::size_t block = order_.at(turn_);
  const std::int64_t rows = store_.rows(block);
  if (access_ == Access::none) return {nullptr, store_.dtype_, rows, cols_};
  if (windows_.empty()) return {store_.on_device(block), store_.dtype_, rows, cols_};
  Window& w = window(turn_);
  if (reads()) {
    if (turn_ == 0) fetch(0);
    if (store_.place_ == Place::disk) {
      w.file.get();
      CopyQueue& in = store_.transfer_->in;
      in.wait_for(w.free);
      in.copy(w.memory.data(), store_.staging(turn_ % windows_.size(), stream_),
              store_.bytes(block, cols_));
      in.record(w.arrived);
    }
    wait_for(w.arrived, stream_);
    if (turn_ + 1 < order_.size()) fetch(turn_ + 1);
  } else if (writes()) {
    wait_for(w.free, stream_);
  }
  return {w.memory.data(), store_.dtype_, rows, cols_};
}

void BlockPass::end(std::int64_t cols) {
  const std::size_t turn = turn_++;
  if (windows_.empty() || access_ == Access::scratch) return;
  Window& w = window(turn);
  if (!writes()) return record(w.free, stream_);
  require(cols <= store_.width_, "BlockPass: more columns than the store has memory for");
  const std::size_t block = order_[turn];
  const std::size_t bytes = store_.bytes(block, cols);
  const bool to_disk = store_.place_ == Place::disk;
  if (w.file.valid()) w.file.get();  // the staging memory's last block is in the file
  unsigned char* to =
      to_disk ? store_.staging(turn % windows_.size(), stream_) : store_.on_host(block, stream_);
  CopyQueue& out = store_.transfer_->out;
  record(w.worked, stream_);
  out.wait_for(w.worked);
  out.copy(to, w.memory.data(), bytes);
  out.record(w.free);
  if (to_disk)
    w.file =
        std::async(std::launch::async, [this, &w, to, bytes, at = block * store_.block_bytes_] {
          w.free.wait();
          store_.transfer_->file.write(to, bytes, at);
        });
}

void BlockPass::finish() {
  require(turn_ == order_.size(), "BlockPass: not all blocks were visited");
  if (!writes() || windows_.empty()) return;
  for (Window& w : windows_)
    if (w.file.valid()) w.file.get();
  store_.transfer_->out.synchronize();
}

void read_block(const BlockStore& store, std::size_t block, Tensor to, Stream& stream) {
  require(to.rows == store.rows(block) && to.cols <= store.width_ && to.contiguous() &&
              to.dtype == store.dtype_,
          "read_block: the block has another shape");
  const std::size_t bytes = store.bytes(block, to.cols);
  switch (store.place_) {
    case Place::device: return copy_on_device(to.data, store.on_device(block), bytes, stream);
    case Place::host: return copy_to_device(to.data, store.on_host(block, stream), bytes, stream);
    case Place::disk:
      store.transfer_->file.read(store.staging(0, stream), bytes, block * store.block_bytes_);
      return copy_to_device(to.data, store.staging(0, stream), bytes, stream);
  }
}

void write_block(BlockStore& store, std::size_t block, ConstTensor from, Stream& stream) {
  require(from.rows == store.rows(block) && from.cols <= store.width_ && from.contiguous() &&
              from.dtype == store.dtype_,
          "write_block: the block has another shape");
  const std::size_t bytes = store.bytes(block, from.cols);
  switch (store.place_) {
    case Place::device: return copy_on_device(store.on_device(block), from.data, bytes, stream);
    case Place::host: return copy_to_host(store.on_host(block, stream), from.data, bytes, stream);
    case Place::disk:
      copy_to_host(store.staging(0, stream), from.data, bytes, stream);
      return store.transfer_->file.write(store.staging(0, stream), bytes,
                                         block * store.block_bytes_);
  }
}

void copy_blocks(const BlockStore& from, BlockStore& to, Stream& stream) {
  require(from.rows_ == to.rows_ && from.width_ == to.width_ && from.place_ == to.place_,
          "copy_blocks: the stores differ");
  if (from.place_ == Place::device)
    return copy_on_device(to.device_.data(), from.device_.data(), from.device_.bytes(), stream);
  for (std::size_t block = 0; block < from.blocks(); ++block) {
    const std::size_t bytes = from.bytes(block, from.width_);
    if (from.place_ == Place::host) {
      std::memcpy(to.on_host(block, stream), from.on_host(block, stream), bytes);
      continue;
    }
    const std::size_t at = block * from.block_bytes_;
    from.transfer_->file.read(from.staging(0, stream), bytes, at);
    to.transfer_->file.write(from.staging(0, stream), bytes, at);
  }
}

std::vector<std::size_t> all_blocks(std::size_t count) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  return order;
}

}  // namespace qpipe
