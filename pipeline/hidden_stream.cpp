#include "pipeline/hidden_stream.h"

#include <array>
#include <chrono>
#include <optional>

#include "kernels/stopwatch.h"
#include "stages/waiting_weights.h"

namespace qpipe {

namespace {

// One block is received, one is computed and one is sent.
constexpr std::size_t slots = 3;

std::size_t slot_of(std::size_t block) { return block % slots; }

// A block's memory apart from the store, on the device.
class Slots {
 public:
  Slots(const Activations& activations, Stream& stream) {
    for (TensorArray& slot : memory_)
      slot = TensorArray(stream.compute_dtype(), activations.blocking.block_tokens(), activations.hidden.width(), stream);
  }
  Tensor of(std::size_t block, std::int64_t tokens) const { return memory_[slot_of(block)].view.row_range(0, tokens); }

 private:
  std::array<TensorArray, slots> memory_;
};

std::size_t bytes_of(const Tensor& tensor) { return static_cast<std::size_t>(tensor.bytes()); }

// Blocks that arrive in order and go into a store whenever they are there.
class Arrivals {
 public:
  Arrivals(Link& link, BlockStore& store, const Activations& activations, Stream& stream)
      : link_(link), store_(store), stream_(stream), slots_(activations, stream) {
    while (asked_ < std::min(slots, count())) ask();
  }
  // Those that have arrived, or all.
  void take(bool all) {
    while (taken_ < count() && (all || link_.oldest_is_done())) {
      link_.wait_oldest();
      write_block(store_, taken_, slots_.of(taken_, store_.rows(taken_)), stream_);
      ++taken_;
      if (asked_ < count()) ask();
    }
  }

 private:
  std::size_t count() const { return store_.blocks(); }
  void ask() {
    const Tensor slot = slots_.of(asked_, store_.rows(asked_));
    link_.receive(slot.data, bytes_of(slot), stream_);
    ++asked_;
  }

  Link& link_;
  BlockStore& store_;
  Stream& stream_;
  Slots slots_;
  std::size_t asked_ = 0;
  std::size_t taken_ = 0;
};

}  // namespace

StreamSeconds stream_hidden(const Architecture& architecture, const DecoderTables& tables, Layer& layer, const StreamTask& task,
                            Activations& activations, const Ring& ring, Stream& stream) {
  const auto begin = std::chrono::steady_clock::now();
  Stopwatch busy(stream);
  const std::size_t count = activations.blocks();
  const WeightsOnDevice weights(layer, task.to_next ? all_blocks(layer.linears.size()) : std::vector<std::size_t>{}, stream);
  const Slots memory(activations, stream);
  const TensorArray input(stream.compute_dtype(), activations.blocking.block_tokens(), widest_input(architecture), stream);
  const auto slot = [&](std::size_t b) { return memory.of(b, activations.hidden.rows(b)); };
  const auto forward = [&](Tensor hidden) {
    Block block{hidden, {input.view.data, input.view.dtype, hidden.rows, architecture.hidden}};
    forward_layer(architecture, tables, layer, activations.blocking.seqlen, block, activations.scratch, stream);
  };
  // CUDA loads a kernel at its first launch, and waits for all that runs on the device before. A receive under way may wait for a block
  // that has to pass through this rank first: so kernels for blocks of both sizes are loaded while none is.
  if (task.load_kernels && task.to_next && count > 0) {
    for (const std::size_t b : {std::size_t{0}, count - 1}) {
      fill_zero(slot(b).data, bytes_of(slot(b)), stream);
      forward(slot(b));
    }
    stream.synchronize();
  }
  std::optional<Arrivals> next_input;
  if (task.next_input != nullptr) next_input.emplace(*ring.from_previous, *task.next_input, activations, stream);

  std::size_t sent = 0;  // whose memory is free again
  const auto fill = [&](std::size_t b) {
    for (; task.to_next && sent + slots <= b; ++sent) ring.to_next->wait_oldest();
    if (task.from_previous)
      ring.from_previous->receive(slot(b).data, bytes_of(slot(b)), stream);
    else if (task.to_next)
      read_block(activations.hidden, b, slot(b), stream);
  };
  if (count > 0) fill(0);
  for (std::size_t b = 0; b < count; ++b) {
    if (b + 1 < count) fill(b + 1);
    if (task.from_previous) {
      ring.from_previous->wait_oldest();
      write_block(activations.hidden, b, slot(b), stream);
    }
    if (task.to_next) {
      busy.start();
      forward(slot(b));
      busy.stop();
      ring.to_next->send(slot(b).data, bytes_of(slot(b)), stream);
    }
    if (next_input) next_input->take(false);
  }
  for (; task.to_next && sent < count; ++sent) {
    if (next_input) next_input->take(false);
    ring.to_next->wait_oldest();
  }
  if (next_input) next_input->take(true);
  const double total = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  StreamSeconds seconds;
  seconds.busy = busy.seconds();
  seconds.wait = std::max(0.0, total - seconds.busy);
  return seconds;
}

void send_hidden(const Activations& activations, const Ring& ring, Stream& stream) {
  const Slots memory(activations, stream);
  for (std::size_t b = 0; b < activations.blocks(); ++b) {
    if (ring.to_next->under_way() == slots) ring.to_next->wait_oldest();
    const Tensor slot = memory.of(b, activations.hidden.rows(b));
    read_block(activations.hidden, b, slot, stream);
    ring.to_next->send(slot.data, bytes_of(slot), stream);
  }
  while (ring.to_next->under_way() > 0) ring.to_next->wait_oldest();
}

void receive_hidden(Activations& activations, const Ring& ring, Stream& stream) {
  Arrivals(*ring.from_previous, activations.hidden, activations, stream).take(true);
}

}  // namespace qpipe
