// Which tensor goes into which shard: pure functions of the tensors' sizes.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/model/safetensors.h"

namespace qpipe {

// Indices of `tensors`, in order, in shards of at most max_bytes each; a larger tensor gets a shard
// of its own. At least one shard.
std::vector<std::vector<std::size_t>> plan_shards(const std::vector<TensorInfo>& tensors,
                                                  std::int64_t max_bytes);

// "model.safetensors" for a single shard, else "model-00002-of-00007.safetensors" (shard counts
// from 0).
std::string shard_name(std::size_t shard, std::size_t shards);

// model.safetensors.index.json (formats.md §6).
nlohmann::json make_index(const std::vector<TensorInfo>& tensors,
                          const std::vector<std::vector<std::size_t>>& plan);

}  // namespace qpipe
