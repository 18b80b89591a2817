// A Hugging Face folder: config.json and its shards as one set of named tensors.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/model/safetensors.h"

namespace qpipe {

class Checkpoint {
 public:
  // Reads config.json and the headers of all shards. With model.safetensors.index.json every name
  // must be where the index says, and shard names must be plain file names of the folder. Throws
  // UserError (see tests/pipeline/checkpoint_test.cpp for the list of faults).
  explicit Checkpoint(const std::filesystem::path& folder);
  // One whose weights are not there yet: these are the tensors that it will have. read() throws.
  Checkpoint(const std::filesystem::path& folder, nlohmann::json config,
             const std::vector<TensorInfo>& tensors);

  const std::filesystem::path& folder() const { return folder_; }
  const nlohmann::json& config() const { return config_; }
  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }
  const TensorInfo& info(const std::string& name) const;
  std::vector<std::string> names() const;  // sorted
  std::vector<std::string> names_of(
      const std::string& module) const;  // those that begin with MODULE and a dot
  void read(const std::string& name, void* to) const;
  void read(const std::string& name, std::int64_t begin, std::int64_t count,
            void* to) const;  // a range of its bytes
  std::int64_t total_bytes() const;

 private:
  std::filesystem::path folder_;
  nlohmann::json config_;
  std::vector<SafetensorsFile> shards_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::size_t> shard_of_;  // of those that can be read
};

}  // namespace qpipe
