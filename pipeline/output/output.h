// The shards of the output, written in parallel by their owners while the run goes on.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/comm.h"
#include "pipeline/model/safetensors.h"

namespace qpipe {

// The shards of the output, planned from the tensors' sizes alone, so that every rank count gives
// the same files. Shard s is made and finished by rank s mod ranks; every rank may write every
// tensor, each tensor once. Shards that are not finished stay as NAME.tmp, and the next ShardSet of
// the same tensors goes on with them.
class ShardSet {
 public:
  // Collective.
  ShardSet(const std::filesystem::path& folder, const std::vector<TensorInfo>& tensors_in_order,
           std::int64_t max_shard_bytes, Comm& comm);

  // Thread-safe.
  void write(const std::string& name, const void* data);
  void write(const std::string& name, std::int64_t piece_bytes,
             const SafetensorsWriter::Pieces& next);
  // A tensor that an earlier run wrote: one rank adopts it and none writes it.
  void adopt(const std::string& name);
  // What stands in the shard at the tensor's place; false when the file is too short. Thread-safe.
  bool read(const std::string& name, void* to) const;
  // Brings these tensors to the disk. Thread-safe.
  void sync(const std::vector<std::string>& names) const;
  // Collective. A fault of any rank is thrown on all.
  void finish(Comm& comm);

  // model.safetensors.index.json; null when there is a single file.
  nlohmann::json index() const { return index_; }
  std::int64_t total_bytes() const { return total_bytes_; }

 private:
  std::map<std::string, std::size_t> shard_of_;
  std::vector<SafetensorsWriter> writers_;
  nlohmann::json index_;
  std::int64_t total_bytes_ = 0;
};

}  // namespace qpipe
