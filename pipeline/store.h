// Quantized linears and the tensors that stay as they are, on their way to the shards.
#pragma once

#include <future>
#include <map>
#include <string>
#include <vector>

#include "pipeline/checkpoint.h"
#include "pipeline/output.h"
#include "pipeline/plan.h"

namespace qpipe {

class Store {
 public:
  // Begins to copy the tensors outside of the decoder layers (embedding, head) in the background, divided over the ranks.
  Store(const QuantizePlan& plan, const Checkpoint& checkpoint, ShardSet& shards, Comm& comm);
  // Waits for the background.
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // A linear that every rank holds: one rank packs it and writes it in the background, while the next one is computed.
  void put(const std::string& module, const QuantizedLinear& quantized, Stream& stream);

  // Tensors that this rank alone has packed.
  void put(std::vector<PackedTensor> tensors);

  // These values, in the plan's dtype, instead of the checkpoint's tensor of that name and shape, which lies in a decoder layer. Every rank
  // has them; one writes.
  void replace(const std::string& name, const std::vector<float>& values);
  // Whether this rank writes the tensor, which stays unquantized and lies in a decoder layer: the others may leave replace() out.
  bool owns(const std::string& name) const { return to_copy_.contains(name); }

  // Collective. Copies what is left, waits for the background and closes the shards.
  // zero_of_zero: some asymmetric zero is 0, so that zeros kept back for format gptq are written as gptq_v2.
  void finish(bool zero_of_zero);

 private:
  void later(std::function<void()> work);
  void copy_tensor(const TensorInfo& info);
  void write_the_rest(bool zero_of_zero);

  const QuantizePlan& plan_;
  const Checkpoint& checkpoint_;
  ShardSet& shards_;
  Comm& comm_;
  std::map<std::string, int> writer_of_;       // module → rank
  std::map<std::string, TensorInfo> to_copy_;  // by this rank, at the end
  std::vector<std::future<void>> pending_;
  std::map<std::string, std::pair<PackedTensor, int>> zeros_;  // kept back, with their bits
};

}  // namespace qpipe
