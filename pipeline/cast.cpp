#include "pipeline/cast.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <mutex>

#include "launch/signals.h"
#include "pipeline/layer_source.h"

namespace qpipe {

namespace {

constexpr std::size_t alignment = 256;
constexpr std::size_t most_workers = 4;

// Linears that are quantized together.
struct Group {
  std::int64_t layer = 0;
  bool last_of_layer = false;
  std::vector<TensorInfo> weights;
  std::vector<std::size_t> offsets;
  std::size_t bytes = 0;
};

std::vector<Group> groups_of_rank(const Checkpoint& checkpoint, const Architecture& architecture, const QuantizePlan& plan,
                                  const FinishedLayers& finished, const Comm& comm) {
  const std::vector<LinearSpec> linears = all_linears(architecture);
  std::vector<Group> groups;
  for (std::int64_t layer = comm.rank(); layer < architecture.layers; layer += comm.size()) {
    if (finished.contains(layer)) continue;
    const std::string prefix = layer_prefix(architecture, layer);
    for (const Step& step : layer_steps(architecture)) {
      Group group;
      group.layer = layer;
      for (const std::size_t i : step.linears) {
        const std::string module = prefix + linears[i].name;
        if (plan.modules.at(module).skip) continue;
        group.weights.push_back(checkpoint.info(module + ".weight"));
        group.offsets.push_back(group.bytes);
        group.bytes += (static_cast<std::size_t>(group.weights.back().bytes()) + alignment - 1) / alignment * alignment;
      }
      groups.push_back(std::move(group));
    }
    groups.back().last_of_layer = true;
  }
  return groups;
}

// Reads, quantizes and packs one layer after another. Several workers read and pack at the same time; the device serves one at a time.
class Worker {
 public:
  Worker(const Checkpoint& checkpoint, const QuantizePlan& plan, std::int64_t largest_weight, std::size_t largest_group,
         std::mutex& device_mutex, Stream& stream)
      : checkpoint_(checkpoint),
        plan_(plan),
        device_mutex_(device_mutex),
        stream_(stream),
        staging_(static_cast<std::size_t>(largest_weight), stream),
        on_device_(largest_group, stream) {}

  std::vector<PackedTensor> cast(const Group& group) {
    std::vector<Linear> linears;
    for (std::size_t i = 0; i < group.weights.size(); ++i) {
      const TensorInfo& info = group.weights[i];
      auto* place = static_cast<unsigned char*>(on_device_.data()) + group.offsets[i];
      checkpoint_.read(info.name, staging_.data());
      const std::lock_guard lock(device_mutex_);
      copy_to_device(place, staging_.data(), static_cast<std::size_t>(info.bytes()), stream_);
      Linear linear;
      linear.name = info.name.substr(0, info.name.size() - std::string(".weight").size());
      linear.stored = {place, info.dtype, info.rows(), info.cols()};
      linears.push_back(linear);
    }
    std::vector<const Linear*> pointers;
    for (const Linear& linear : linears) pointers.push_back(&linear);
    const std::lock_guard lock(device_mutex_);
    return cast_linears(pointers, plan_.storage, stream_);
  }

 private:
  const Checkpoint& checkpoint_;
  const QuantizePlan& plan_;
  std::mutex& device_mutex_;
  Stream& stream_;
  HostBuffer staging_;
  Buffer on_device_;
};

}  // namespace

void cast_layers(const Checkpoint& checkpoint, const Architecture& architecture, const QuantizePlan& plan, Store& store, const Comm& comm,
                 Stream& stream, const std::function<void(std::int64_t)>& progress) {
  const std::vector<Group> groups = groups_of_rank(checkpoint, architecture, plan, store.finished(), comm);
  std::int64_t largest_weight = 0;
  std::size_t largest_group = 0;
  std::vector<std::size_t> layer_ends;  // layer i of this rank: groups [layer_ends[i − 1], layer_ends[i])
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (const TensorInfo& info : groups[g].weights) largest_weight = std::max(largest_weight, info.bytes());
    largest_group = std::max(largest_group, groups[g].bytes);
    if (groups[g].last_of_layer) layer_ends.push_back(g + 1);
  }

  std::mutex device_mutex;
  std::mutex store_mutex;
  std::atomic<std::size_t> next_layer{0};
  std::atomic<bool> stop{false};
  std::vector<std::unique_ptr<Worker>> workers;
  for (std::size_t i = 0; i < std::min(most_workers, layer_ends.size()); ++i)
    workers.push_back(std::make_unique<Worker>(checkpoint, plan, largest_weight, largest_group, device_mutex, stream));

  const auto work = [&](Worker& worker) {
    stream.adopt_thread();
    while (!stop) {
      const std::size_t layer = next_layer++;
      if (layer >= layer_ends.size()) return;
      std::vector<PackedTensor> tensors;
      for (std::size_t g = layer == 0 ? 0 : layer_ends[layer - 1]; g < layer_ends[layer]; ++g)
        for (PackedTensor& tensor : worker.cast(groups[g])) tensors.push_back(std::move(tensor));
      const std::int64_t index = groups[layer_ends[layer] - 1].layer;
      const std::lock_guard lock(store_mutex);
      store.put(std::move(tensors));
      store.commit(index, 0, 1, {});
      if (const auto fault = store.fault()) throw *fault;
      progress(index);
      if (signals_received() > 0) stop = true;
    }
  };
  std::vector<std::future<void>> running;
  for (const auto& worker : workers)
    running.push_back(std::async(std::launch::async, [&, &one = *worker] {
      try {
        work(one);
      } catch (...) {
        stop = true;
        throw;
      }
    }));
  for (std::future<void>& done : running) done.wait();
  for (std::future<void>& done : running) done.get();
}

}  // namespace qpipe
