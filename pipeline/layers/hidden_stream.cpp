#include "pipeline/layers/hidden_stream.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "kernels/stopwatch.h"
#include "launch/clock.h"
#include "stages/waiting_weights.h"

namespace qpipe {

namespace {

// One block is received, one is computed and one is sent.
constexpr std::size_t slots = 3;

// A stage works on a block two steps after the stage before: one step in which that stage computes
// it, one in which it travels.
constexpr std::int64_t lag = 2;

// Memory on the device for the blocks on their way, apart from the store.
class Slots {
 public:
  Slots(const Activations& activations, Stream& stream) {
    for (TensorArray& slot : memory_)
      slot = TensorArray(stream.compute_dtype(), activations.blocking.block_tokens(),
                         activations.hidden.width(), stream);
  }
  Tensor of(std::size_t block, std::int64_t tokens) const {
    return memory_[block % slots].view.row_range(0, tokens);
  }

 private:
  std::array<TensorArray, slots> memory_;
};

std::size_t bytes_of(const Tensor& tensor) { return static_cast<std::size_t>(tensor.bytes()); }

Ring::Outgoing outgoing(const Tensor& tensor) { return {tensor.data, bytes_of(tensor)}; }
Ring::Incoming incoming(const Tensor& tensor) { return {tensor.data, bytes_of(tensor)}; }

}  // namespace

// Step t of all stages: stage s computes block t − lag·s, and in the exchange of step t sends it
// and receives block t − lag·(s − 1), which it computes at step t + lag. The exchange of step t
// runs beside the computation of step t + 1.
StreamSeconds stream_hidden(const Architecture& architecture, const DecoderTables& tables,
                            Layer& layer, const StreamTask& task, Activations& activations,
                            Ring& ring, Stream& stream) {
  const Clock clock;
  Stopwatch busy(stream);
  BlockStore& hidden = activations.hidden;
  const auto count = static_cast<std::int64_t>(hidden.blocks());
  const bool runs = task.to_next || task.keep_inputs;
  const WeightsOnDevice weights(
      layer, runs ? all_blocks(layer.linears.size()) : std::vector<std::size_t>{}, stream);
  const Slots memory(activations, stream);
  const std::optional<Slots> next_memory =
      task.next_input != nullptr ? std::optional<Slots>(std::in_place, activations, stream)
                                 : std::nullopt;
  TensorArray input(stream.compute_dtype(), activations.blocking.block_tokens(),
                    widest_input(architecture), stream);

  const auto exists = [&](std::int64_t block) { return block >= 0 && block < count; };
  const auto slot = [&](const Slots& of, std::int64_t block) {
    return of.of(static_cast<std::size_t>(block), hidden.rows(static_cast<std::size_t>(block)));
  };
  begin_output(activations, stream);
  if (task.keep_inputs) begin_keeping(layer, activations, stream);
  const std::int64_t first_step = task.from_previous ? lag * (task.stage - 1) : 0;
  const std::int64_t last_step =
      count - 1 + (task.next_input != nullptr ? lag * task.stages : lag * task.stage);
  for (std::int64_t step = first_step; step <= last_step; ++step) {
    const std::int64_t own = step - lag * task.stage;
    const std::int64_t from_previous = own + lag;                        // in this step's exchange
    const std::int64_t for_next_round = step - lag * (task.stages - 1);  // likewise
    ring.wait(lag - 1);
    Ring::Outgoing out;
    Ring::Incoming in;
    if (next_memory && exists(for_next_round - lag))
      write_block(*task.next_input, static_cast<std::size_t>(for_next_round - lag),
                  slot(*next_memory, for_next_round - lag), stream);
    if (exists(own)) {
      const Tensor block = slot(memory, own);
      const auto local = static_cast<std::size_t>(own);
      if (!task.from_previous && runs) read_block(hidden, local, block, stream);
      if (task.from_previous && !task.keep_inputs) write_block(hidden, local, block, stream);
      if (runs) {
        busy.start();
        Block work{block, {input.view.data, input.view.dtype, block.rows, layer.spec->hidden}};
        if (task.keep_inputs) {
          forward_and_keep(layer, tables, local, work, activations, stream);
        } else {
          forward_layer(layer, tables, activations.blocking.seqlen, work, activations.scratch,
                        stream);
          measure_output(work, activations, stream);
        }
        busy.stop();
      }
      if (task.to_next) out = outgoing(block);
    }
    if (task.from_previous && exists(from_previous)) in = incoming(slot(memory, from_previous));
    if (next_memory && exists(for_next_round)) in = incoming(slot(*next_memory, for_next_round));
    ring.exchange(out, in, stream);
  }
  ring.wait(0);
  StreamSeconds seconds;
  seconds.busy = busy.seconds();
  seconds.wait = std::max(0.0, clock.seconds() - seconds.busy);
  return seconds;
}

void send_hidden(const Activations& activations, Ring& ring, Stream& stream) {
  const Slots memory(activations, stream);
  for (std::size_t b = 0; b < activations.blocks(); ++b) {
    ring.wait(slots - 1);
    const Tensor slot = memory.of(b, activations.hidden.rows(b));
    read_block(activations.hidden, b, slot, stream);
    ring.exchange(outgoing(slot), {}, stream);
  }
  ring.wait(0);
}

void receive_hidden(Activations& activations, Ring& ring, Stream& stream) {
  const Slots memory(activations, stream);
  const std::size_t count = activations.blocks();
  const auto slot = [&](std::size_t b) { return memory.of(b, activations.hidden.rows(b)); };
  std::size_t asked = 0;
  for (std::size_t b = 0; b < count; ++b) {
    for (; asked < std::min(count, b + slots); ++asked)
      ring.exchange({}, incoming(slot(asked)), stream);
    ring.wait(asked - b - 1);
    write_block(activations.hidden, b, slot(b), stream);
  }
}

}  // namespace qpipe
