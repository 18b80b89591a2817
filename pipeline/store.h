// Solved linears and the tensors that stay as they are, on their way to the shards.
#pragma once

#include <future>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "pipeline/checkpoint.h"
#include "pipeline/output.h"
#include "pipeline/plan.h"

namespace qpipe {

class Store {
 public:
  Store(const QuantizePlan& plan, const Checkpoint& checkpoint, ShardSet& shards) : plan_(plan), checkpoint_(checkpoint), shards_(shards) {}

  // Packs what this rank owns and writes it in the background, while the next layer is computed.
  void put(const std::string& module, const QuantizedLinear& quantized, Stream& stream);

  // These values, in the plan's dtype, instead of the checkpoint's tensor of that name and shape.
  void replace(const std::string& name, const std::vector<float>& values);
  bool owns(const std::string& name) const { return shards_.owns(name); }

  // Every other tensor that is not packed, converted to the plan's dtype. Waits for the background writes and closes the shards.
  // zero_of_zero: some asymmetric zero is 0, so that zeros kept back for format v1 are written as v2.
  void finish(bool zero_of_zero);

 private:
  void write_later(std::vector<PackedTensor> tensors);
  void copy_tensor(const TensorInfo& info);

  const QuantizePlan& plan_;
  const Checkpoint& checkpoint_;
  ShardSet& shards_;
  std::vector<std::future<void>> pending_;
  std::set<std::string> replaced_;
  std::map<std::string, std::pair<PackedTensor, int>> zeros_;  // kept back, with their bits
};

}  // namespace qpipe
