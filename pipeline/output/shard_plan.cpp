#include "pipeline/output/shard_plan.h"

#include <fmt/format.h>

namespace qpipe {

std::vector<std::vector<std::size_t>> plan_shards(const std::vector<TensorInfo>& tensors,
                                                  std::int64_t max_bytes) {
  std::vector<std::vector<std::size_t>> shards(1);
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!shards.back().empty() && bytes + tensors[i].bytes() > max_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(i);
    bytes += tensors[i].bytes();
  }
  return shards;
}

std::string shard_name(std::size_t shard, std::size_t shards) {
  return shards == 1 ? "model.safetensors"
                     : fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
}

nlohmann::json make_index(const std::vector<TensorInfo>& tensors,
                          const std::vector<std::vector<std::size_t>>& plan) {
  nlohmann::json map = nlohmann::json::object();
  std::int64_t total = 0;
  for (std::size_t shard = 0; shard < plan.size(); ++shard)
    for (const std::size_t i : plan[shard]) {
      map[tensors[i].name] = shard_name(shard, plan.size());
      total += tensors[i].bytes();
    }
  return {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
}

}  // namespace qpipe
