// Quantized linears and the tensors that stay as they are, on their way to the shards, and the
// records of finished layers.
//
// What fails in the background is a fault of this rank, which the caller asks for with fault(), so
// that all ranks can stop together.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "launch/teams.h"
#include "pipeline/files/error.h"
#include "pipeline/files/workers.h"
#include "pipeline/journal/finished_layers.h"
#include "pipeline/model/checkpoint.h"
#include "pipeline/output/output.h"
#include "pipeline/plan/plan.h"

namespace qpipe {

class Store {
 public:
  // Begins to copy the tensors outside of the decoder layers (embedding, head) and those that pass
  // through in the background, divided over the ranks; where a method has nothing to replace, also
  // those that stay as they are inside of the layers. Collective. A layer's tensors are written by
  // the ranks of its team.
  Store(const QuantizePlan& plan, const Checkpoint& checkpoint, ShardSet& shards,
        const Journal& journal, const Teams& teams, Comm& comm);
  // Waits for the background.
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // A linear that every rank of the team holds: one of them packs it and writes it in the
  // background, while the next one is computed.
  void put(const std::string& module, const QuantizedLinear& quantized, Stream& stream);

  // Its tensors, for a put() that follows. From any thread.
  std::vector<PackedTensor> pack(const std::string& module, const QuantizedLinear& quantized,
                                 Stream& stream) const;
  // Tensors that this rank alone has packed: it writes them.
  void put(std::vector<PackedTensor> tensors);

  // These values, in the plan's dtype, instead of the checkpoint's tensor of that name and shape,
  // which lies in a decoder layer. Every rank of the team has them; one writes.
  void replace(const std::string& name, const std::vector<float>& values);
  // Whether this rank writes the tensor, which stays unquantized and lies in a decoder layer: the
  // others may leave replace() out.
  bool owns(const std::string& name) const { return to_copy_.contains(name); }

  // What an earlier run has finished: these layers are neither put nor committed.
  const FinishedLayers& finished() const { return finished_; }

  // The layer is complete: brings what this rank put since the last commit to the disk, then its
  // record, in the background; a layer at a time, so that this waits for the layer before. This
  // rank's part is one of `parts`.
  void commit(std::int64_t layer, int part, int parts, const LayerFindings& findings);

  // The same for layers that this rank packs alone, several at a time, from any thread: write()
  // returns when the tensors are written, commit_written() at once, and `committed` is called when
  // the layer and its record are on the disk. Layers that have become complete during a commit are
  // committed together, so that the disk is never asked for more than it has time for.
  void write(std::int64_t layer, const std::vector<PackedTensor>& tensors);
  void commit_written(std::int64_t layer, std::function<void()> committed);

  // Returns when all commits are on the disk or have failed.
  void wait_for_commits();
  std::optional<UserError> fault() const;

  // Collective. Copies what is left, waits for the background and closes the shards.
  // zero_of_zero: some asymmetric zero is 0, so that zeros kept back for format gptq are written as
  // gptq_v2.
  void finish(bool zero_of_zero);

 private:
  // What one commit brings to the disk.
  struct Part {
    std::mutex mutex;  // guards `record`
    LayerRecord record;
    std::vector<PackedTensor> held;
    std::function<void()> committed = [] {};
    std::vector<std::future<void>> writes;  // which use the others
    ~Part() {
      for (std::future<void>& write : writes) write.wait();
    }
  };

  // What `work` throws becomes the fault; it does nothing after one.
  std::function<void()> guarded(std::function<void()> work);
  // Runs in the background.
  std::future<void> start(std::function<void()> work);
  void write(Part& part, const PackedTensor& tensor);
  std::shared_ptr<Part> written_part(std::int64_t layer);
  void commit_in_background(std::shared_ptr<Part> part);
  void commit_complete_parts();
  void write_records(const std::vector<std::shared_ptr<Part>>& parts);
  void write_held(Part& part);
  void copy_tensor(const TensorInfo& info);
  void pass_through(int next);  // `next`: whose turn it is
  void take_up_finished_layers();
  void write_the_rest(bool zero_of_zero);

  const QuantizePlan& plan_;
  const Checkpoint& checkpoint_;
  ShardSet& shards_;
  const Journal& journal_;
  Comm& comm_;
  FinishedLayers finished_;
  std::map<std::string, int> writer_of_;       // module → rank
  std::map<std::string, int> bits_of_;         // qzeros that may be kept back → their bits
  std::map<std::string, TensorInfo> to_copy_;  // by this rank, at the end
  std::map<std::string, std::vector<unsigned char>> zeros_;  // kept back
  std::vector<std::future<void>> copies_;
  // Of what is put. A layer's tensors wait in memory while the disk is slower than the device: a
  // commit waits for that of the layer before.
  Workers writers_{8};
  std::shared_ptr<Part> part_ = std::make_shared<Part>();
  std::mutex commit_mutex_;                                      // guards the four below
  std::map<std::int64_t, std::shared_ptr<Part>> written_parts_;  // layers that write() has begun
  std::vector<std::shared_ptr<Part>> complete_parts_;            // wait for their commit
  bool commits_ = false;  // the background takes complete_parts_ until there are none
  std::future<void> commit_;
  mutable std::mutex fault_mutex_;
  std::optional<UserError> fault_;
};

}  // namespace qpipe
