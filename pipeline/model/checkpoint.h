// A Hugging Face folder: config.json and its shards as one set of named tensors.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/files/error.h"
#include "pipeline/model/fused_experts.h"
#include "pipeline/model/safetensors.h"

namespace qpipe {

struct RenamedTensor {
  std::string stored;
  std::string name;
};

// A tensor of the file that experts share, and the weights or biases that are presented in its
// place.
struct ExpertStack {
  TensorInfo stored;
  std::vector<std::string> linears;
};

class Checkpoint {
 public:
  // Reads config.json and the headers of all shards: those that model.safetensors.index.json names,
  // by plain file names of the folder. As in transformers the shards say what they hold; where the
  // index says otherwise is a fault of the tensor (below). An embedding that is stored as the tied
  // head alone goes by the embedding's name (pipeline/model/tied_embedding.h); experts that share a
  // tensor are linears of their own (pipeline/model/fused_experts.h). Throws UserError (see
  // tests/pipeline/model/checkpoint_test.cpp for the list of faults).
  explicit Checkpoint(const std::filesystem::path& folder);
  // One whose weights are not there yet: these are the tensors that it will have. read() throws.
  Checkpoint(const std::filesystem::path& folder, nlohmann::json config,
             const std::vector<TensorInfo>& tensors);

  const std::filesystem::path& folder() const { return folder_; }
  const nlohmann::json& config() const { return config_; }
  bool has_weights() const { return !shards_.empty(); }
  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }
  const TensorInfo& info(const std::string& name) const;
  std::vector<std::string> names() const;  // sorted
  std::vector<std::string> names_of(
      const std::string& module) const;  // those that begin with MODULE and a dot
  void read(const std::string& name, void* to) const;
  void read(const std::string& name, std::int64_t begin, std::int64_t count,
            void* to) const;  // a range of its bytes
  // Whether an expert's weight lies [in, out] (pipeline/model/fused_experts.h).
  bool lies_transposed(const std::string& name) const;
  // Those of which every part is presented as it is stored. They have info() and read() as well.
  std::vector<ExpertStack> expert_stacks() const;
  std::int64_t total_bytes() const;
  // In place of some tensors shows one that `read` makes of them, bytes [begin, begin + count) at a
  // time, from any thread. What is hidden is read by read_stored, under its name.
  using ReadRange =
      std::function<void(const Checkpoint& from, std::int64_t begin, std::int64_t count, void* to)>;
  void present(const TensorInfo& made, const std::vector<std::string>& hidden, ReadRange read);
  void read_stored(const std::string& name, std::int64_t begin, std::int64_t count, void* to) const;
  // The hidden tensors behind one that is presented; none for any other.
  std::vector<TensorInfo> parts_of(const std::string& name) const;
  // config() loses its quantization_config, the format of which has this name.
  void forget_quantization(const std::string& format);
  const std::string& dequantized_from() const { return dequantized_from_; }  // empty: it had none
  // Tensors that the index promises and no shard has, and those that two shards have: what is to be
  // thrown when somebody needs one of them.
  const std::map<std::string, UserError>& faults() const { return faults_; }
  std::optional<UserError> fault_of(const std::string& name) const;
  // The file that a tensor is in, or the folder where it is made of several.
  std::filesystem::path place_of(const std::string& name) const;

 private:
  void add_tensors(std::size_t shard, const std::map<std::string, std::string>& shard_of_tensor);
  void rename(const RenamedTensor& renamed);
  void present_experts();
  void read_slice(const TensorSlice& slice, std::int64_t begin, std::int64_t count,
                  unsigned char* to) const;
  const std::string& stored_name(const std::string& name) const;

  std::filesystem::path folder_;
  nlohmann::json config_;
  std::vector<SafetensorsFile> shards_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::size_t> shard_of_;   // of those that can be read
  std::map<std::string, std::string> stored_as_;  // name → that in the shard, where it is another
  std::map<std::string, ReadRange> made_;
  std::map<std::string, std::vector<TensorInfo>> parts_;  // that they are made of
  std::string dequantized_from_;
  std::map<std::string, TensorSlice> slices_;  // by the name under which they are presented
  std::map<std::string, TensorInfo> stacks_;   // of slices, as they are stored
  std::map<std::string, UserError> faults_;
};

}  // namespace qpipe
