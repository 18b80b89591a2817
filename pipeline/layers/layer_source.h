// Weights from disk to every rank's device: one rank reads a tensor, the others receive it.
//
// A decoder layer travels as one blob. Its owner (the ranks take turns) reads it ahead of time in
// the background, while the ranks compute the layer before.
#pragma once

#include <future>
#include <map>
#include <optional>
#include <vector>

#include "launch/comm.h"
#include "pipeline/model/checkpoint.h"
#include "pipeline/model/read_back.h"
#include "stages/embedding.h"
#include "stages/head.h"

namespace qpipe {

class LayerSource {
 public:
  // All references outlive the source. Quantized checkpoints are read back: packed linears are
  // dequantized, their Linear::stored is empty. The checkpoint has passed check_tensors. The ranks
  // of `comm` will ask for the layers first, first + stride, ….
  LayerSource(const Checkpoint& checkpoint, const Architecture& architecture, Comm& comm,
              Stream& stream, std::int64_t first = 0, std::int64_t stride = 1);
  ~LayerSource();

  // Collective, in increasing order of the layers for the prefetch to pay. by_step: the linears'
  // weights wait in host memory (stages/waiting_weights.h) until the next layer is loaded; not for
  // packed checkpoints.
  Layer load_layer(std::int64_t index, bool by_step = false);

  // What lies before and behind the layers. Collective.
  EmbeddingWeights load_embedding();
  HeadWeights load_head();

 private:
  struct Slot {
    TensorInfo info;  // the shape as it is in memory
    std::size_t offset = 0;
    bool transposed = false;  // in the file
    bool waits =
        false;  // a linear's weight, which waits in host memory where the layer is loaded by step
  };
  struct Plan {
    std::vector<Slot> slots;
    std::size_t bytes = 0;
  };
  Plan plan_layer(std::int64_t index) const;
  int owner(std::int64_t index) const;
  HostBuffer read(const Plan& plan, HostBuffer to) const;
  void prefetch(std::int64_t index);
  // The layer's bytes as the checkpoint has them: on every rank's device, or in host_ on every
  // rank.
  Buffer receive_on_device(std::int64_t index, const Plan& plan);
  void receive_on_host(std::int64_t index, const Plan& plan);
  std::optional<HostBuffer> read_own(std::int64_t index);
  Layer make_layer(std::int64_t index, const std::map<std::string, Tensor>& stored, bool by_step);
  // Any tensor, in the checkpoint's type, or converted to the compute type.
  TensorArray load_tensor(const std::string& name);
  TensorArray load_compute_tensor(const std::string& name);
  ConstTensor load_small(const std::string& name, std::vector<Buffer>& memory);
  Norm load_norm(const std::optional<NormSpec>& spec, std::vector<Buffer>& memory);
  Linear load_linear(const std::optional<LinearSpec>& spec, std::vector<Buffer>& memory);

  const Checkpoint& checkpoint_;
  const Architecture& architecture_;
  Comm& comm_;
  Stream& stream_;
  std::int64_t first_;
  std::int64_t stride_;
  StoredFormat format_;
  std::map<std::int64_t, std::future<HostBuffer>> ahead_;
  HostBuffer host_;  // the layer whose weights wait
  std::vector<HostBuffer>
      spare_;  // to read into: page-locking memory anew takes as long as reading it
  std::future<void> given_back_;
};

}  // namespace qpipe
