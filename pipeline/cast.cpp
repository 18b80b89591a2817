#include "pipeline/cast.h"

#include <algorithm>
#include <array>
#include <future>

#include "launch/signals.h"
#include "pipeline/layer_source.h"

namespace qpipe {

namespace {

constexpr std::size_t alignment = 256;

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

using Reads = std::vector<std::future<void>>;

Reads start_reading(const Checkpoint& checkpoint, const Group& group, const HostBuffer& to) {
  Reads reads;
  for (std::size_t i = 0; i < group.weights.size(); ++i)
    reads.push_back(std::async(std::launch::async, [&checkpoint, name = group.weights[i].name, place = to.data() + group.offsets[i]] {
      checkpoint.read(name, place);
    }));
  return reads;
}

}  // namespace

void cast_layers(const Checkpoint& checkpoint, const Architecture& architecture, const QuantizePlan& plan, Store& store, const Comm& comm,
                 Stream& stream, const std::function<void(std::int64_t)>& progress) {
  const std::vector<Group> groups = groups_of_rank(checkpoint, architecture, plan, store.finished(), comm);
  std::size_t largest = 0;
  for (const Group& group : groups) largest = std::max(largest, group.bytes);
  const std::array<HostBuffer, 2> staging{HostBuffer(largest, stream), HostBuffer(largest, stream)};
  const Buffer on_device(largest, stream);

  Reads reads;
  if (!groups.empty()) reads = start_reading(checkpoint, groups.front(), staging[0]);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const Group& group = groups[g];
    for (std::future<void>& read : reads) read.get();
    reads.clear();
    if (g + 1 < groups.size()) reads = start_reading(checkpoint, groups[g + 1], staging[(g + 1) % 2]);
    if (!group.weights.empty()) {
      copy_to_device(on_device.data(), staging[g % 2].data(), group.bytes, stream);
      std::vector<Linear> linears;
      for (std::size_t i = 0; i < group.weights.size(); ++i) {
        const TensorInfo& info = group.weights[i];
        Linear linear;
        linear.name = info.name.substr(0, info.name.size() - std::string(".weight").size());
        linear.stored = {static_cast<const unsigned char*>(on_device.data()) + group.offsets[i], info.dtype, info.rows(), info.cols()};
        linears.push_back(linear);
      }
      std::vector<const Linear*> pointers;
      for (const Linear& linear : linears) pointers.push_back(&linear);
      store.put(cast_linears(pointers, plan.storage, stream));
    }
    if (!group.last_of_layer) continue;
    store.commit(group.layer, 0, 1, {});
    if (const auto fault = store.fault()) throw *fault;
    progress(group.layer);
    if (signals_received() > 0) break;
  }
}

}  // namespace qpipe
