#include "pipeline/layers/layer_source.h"

#include <algorithm>
#include <set>
#include <utility>

#include "kernels/activation.h"
#include "kernels/alignment.h"
#include "pipeline/files/agree.h"
#include "pipeline/model/model.h"

namespace qpipe {

namespace {

constexpr std::size_t tensor_piece_bytes =
    std::size_t{32} << 20;  // of a tensor on its way from the file to the device
constexpr std::size_t tensor_part_bytes = std::size_t{8}
                                          << 20;  // of a piece, each read by a thread
constexpr std::size_t piece_bytes = std::size_t{128}
                                    << 20;  // of a layer on its way to the others' host memory

}  // namespace

LayerSource::LayerSource(const Checkpoint& checkpoint, const Architecture& architecture, Comm& comm,
                         Stream& stream, std::int64_t first, std::int64_t stride)
    : checkpoint_(checkpoint),
      architecture_(architecture),
      comm_(comm),
      stream_(stream),
      first_(first),
      stride_(stride),
      format_(
          read_stored_format(checkpoint.config(), (checkpoint.folder() / "config.json").string())) {
  for (int turn = 0; turn < comm.size(); ++turn) prefetch(first_ + turn * stride_);
}

LayerSource::~LayerSource() = default;

int LayerSource::owner(std::int64_t index) const {
  return static_cast<int>((index - first_) / stride_ % comm_.size());
}

LayerSource::Plan LayerSource::plan_layer(std::int64_t index) const {
  const std::string prefix = layer_prefix(architecture_, index);
  std::vector<std::string> names;
  for (const LinearSpec& linear : all_linears(architecture_)) {
    const std::string module = prefix + linear.name;
    for (const std::string& name : checkpoint_.names_of(module))  // the weight, or its parts
      if (name != module + ".bias") names.push_back(name);
    if (linear.bias) names.push_back(module + ".bias");
  }
  const LayerNames& norms = architecture_.names;
  for (const std::string& norm :
       {norms.attention_norm, norms.mlp_norm, norms.q_norm, norms.k_norm}) {
    if (norm.empty()) continue;
    names.push_back(prefix + norm + ".weight");
    if (checkpoint_.contains(prefix + norm + ".bias")) names.push_back(prefix + norm + ".bias");
  }
  Plan plan;
  for (const std::string& name : names) {
    plan.slots.push_back({checkpoint_.info(name), plan.bytes});
    plan.bytes += aligned(static_cast<std::size_t>(plan.slots.back().info.bytes()));
  }
  return plan;
}

HostBuffer LayerSource::read(const Plan& plan, HostBuffer to) const {
  if (to.bytes() < plan.bytes) to = HostBuffer(plan.bytes, stream_);
  std::vector<std::future<void>> reads;  // a single reader does not saturate a fast disk
  for (const Slot& slot : plan.slots)
    reads.push_back(std::async(std::launch::async, [this, &slot, place = to.data() + slot.offset] {
      checkpoint_.read(slot.info.name, place);
    }));
  for (std::future<void>& done : reads) done.get();
  return to;
}

void LayerSource::prefetch(std::int64_t index) {
  if (index >= architecture_.layers || owner(index) != comm_.rank() || ahead_.count(index) != 0)
    return;
  HostBuffer to;
  if (!spare_.empty()) {
    to = std::move(spare_.back());
    spare_.pop_back();
  }
  ahead_[index] = std::async(std::launch::async, [this, index, buffer = std::move(to)]() mutable {
    return read(plan_layer(index), std::move(buffer));
  });
}

// The owner's bytes, agreed to be there by all ranks; nothing on the others.
std::optional<HostBuffer> LayerSource::read_own(std::int64_t index) {
  std::optional<HostBuffer> data;
  on_all(comm_, [&] {
    if (owner(index) != comm_.rank()) return;
    prefetch(index);
    data = std::exchange(ahead_.at(index), {}).get();
    ahead_.erase(index);
  });
  return data;
}

Buffer LayerSource::receive_on_device(std::int64_t index, const Plan& plan) {
  Buffer blob(plan.bytes, stream_);
  if (std::optional<HostBuffer> data = read_own(index)) {
    copy_to_device(blob.data(), data->data(), plan.bytes, stream_);
    spare_.push_back(std::move(*data));
  }
  comm_.broadcast(blob.data(), blob.bytes(), owner(index), stream_);
  return blob;
}

void LayerSource::receive_on_host(std::int64_t index, const Plan& plan) {
  const bool own = owner(index) == comm_.rank();
  if (std::optional<HostBuffer> data = read_own(index)) {
    if (host_.bytes() > 0) spare_.push_back(std::move(host_));
    host_ = std::move(*data);
  } else if (host_.bytes() < plan.bytes) {
    host_ = HostBuffer(plan.bytes, stream_);
  }
  if (comm_.size() == 1) return;
  Buffer piece(std::min(plan.bytes, piece_bytes), stream_);
  for (std::size_t begin = 0; begin < plan.bytes; begin += piece.bytes()) {
    const std::size_t bytes = std::min(piece.bytes(), plan.bytes - begin);
    if (own) copy_to_device(piece.data(), host_.data() + begin, bytes, stream_);
    comm_.broadcast(piece.data(), bytes, owner(index), stream_);
    if (own) continue;
    comm_.wait(stream_);
    copy_to_host(host_.data() + begin, piece.data(), bytes, stream_);
  }
}

Layer LayerSource::load_layer(std::int64_t index, bool by_step) {
  const Plan plan = plan_layer(index);
  Buffer blob;
  if (by_step)
    receive_on_host(index, plan);
  else
    blob = receive_on_device(index, plan);
  for (int turn = 1; turn <= comm_.size(); ++turn) prefetch(index + turn * stride_);
  if (ahead_.empty() &&
      !spare_.empty())  // nothing more to read: giving back page-locked memory takes a while, too
    given_back_ = std::async(std::launch::async,
                             [unused = std::exchange(spare_, {})]() mutable { unused.clear(); });

  // Where each tensor is: linears' weights on the host by step, all else on the device.
  std::map<std::string, Tensor> stored;
  std::vector<Buffer> memory;
  std::set<std::string> waiting;
  if (by_step)
    for (const LinearSpec& spec : all_linears(architecture_))
      waiting.insert(layer_prefix(architecture_, index) + spec.name + ".weight");
  for (const Slot& slot : plan.slots) {
    void* data = by_step ? host_.data() + slot.offset
                         : static_cast<unsigned char*>(blob.data()) + slot.offset;
    if (by_step && !waiting.contains(slot.info.name)) {
      memory.emplace_back(static_cast<std::size_t>(slot.info.bytes()), stream_);
      copy_to_device(memory.back().data(), data, memory.back().bytes(), stream_);
      data = memory.back().data();
    }
    const ConstTensor view = view_of(slot.info, data);
    stored[slot.info.name] = Tensor(data, view.dtype, view.rows, view.cols);
  }
  if (!by_step) memory.push_back(std::move(blob));
  Layer layer = make_layer(index, stored, by_step);
  for (Buffer& buffer : memory) layer.memory.push_back(std::move(buffer));
  return layer;
}

Layer LayerSource::make_layer(std::int64_t index, const std::map<std::string, Tensor>& stored,
                              bool by_step) {
  Layer layer;
  layer.index = index;
  const DType compute = stream_.compute_dtype();
  const auto as_stored = [&](const std::string& name) -> ConstTensor {
    const auto found = stored.find(name);
    return found == stored.end() ? Tensor{} : found->second;
  };
  const auto converted = [&](ConstTensor tensor) {
    TensorArray copy(compute, tensor.rows, tensor.cols, stream_);
    convert(tensor, copy, stream_);
    layer.memory.push_back(std::move(copy.memory));
    return copy.view;
  };
  const auto in_compute_type = [&](const std::string& name) -> ConstTensor {
    const ConstTensor tensor = as_stored(name);
    return tensor.empty() || tensor.dtype == compute ? tensor : converted(tensor);
  };

  const std::string prefix = layer_prefix(architecture_, index);
  for (const LinearSpec& spec : all_linears(architecture_)) {
    Linear linear;
    linear.name = prefix + spec.name;
    if (is_packed(checkpoint_, linear.name)) {
      require(!by_step, "load_layer: packed weights do not wait");
      TensorArray weight(compute, spec.out_features, spec.in_features, stream_);
      PackedParts parts;
      for (const std::string& name : checkpoint_.names_of(linear.name))
        if (name != linear.name + ".bias") parts[name.substr(linear.name.size())] = stored.at(name);
      read_back(format_, linear.name, parts, weight, stream_);
      linear.weight = weight.view;
      layer.memory.push_back(std::move(weight.memory));
    } else {
      const Tensor tensor = stored.at(linear.name + ".weight");
      if (by_step) {
        linear.stored = ConstTensor(nullptr, tensor.dtype, tensor.rows, tensor.cols);
        linear.weight = Tensor(nullptr, compute, tensor.rows, tensor.cols);
        layer.waiting.push_back(
            {static_cast<unsigned char*>(tensor.data), tensor.dtype, false, {}, {}, {}});
      } else {
        linear.stored = tensor;
        linear.weight = tensor.dtype == compute ? tensor : converted(tensor);
      }
    }
    linear.bias = in_compute_type(linear.name + ".bias");
    linear.stored_bias = as_stored(linear.name + ".bias");
    layer.linears.push_back(linear);
  }
  const auto norm = [&](const std::string& name) -> Norm {
    if (name.empty()) return {};
    const std::string weight = prefix + name + ".weight";
    const std::string bias = prefix + name + ".bias";
    return {in_compute_type(weight), in_compute_type(bias), as_stored(weight), as_stored(bias)};
  };
  layer.attention_norm = norm(architecture_.names.attention_norm);
  layer.mlp_norm = norm(architecture_.names.mlp_norm);
  layer.q_norm = norm(architecture_.names.q_norm).weight;
  layer.k_norm = norm(architecture_.names.k_norm).weight;
  return layer;
}

TensorArray LayerSource::load_tensor(const std::string& name) {
  const TensorInfo& info = checkpoint_.info(name);
  TensorArray array(info.dtype, info.rows(), info.cols(), stream_);
  on_root(comm_, [&] {
    HostBuffer piece(std::min(static_cast<std::size_t>(info.bytes()), tensor_piece_bytes), stream_);
    for (std::size_t begin = 0; begin < array.memory.bytes(); begin += piece.bytes()) {
      const std::size_t bytes = std::min(piece.bytes(), array.memory.bytes() - begin);
      std::vector<std::future<void>> reads;
      for (std::size_t part = 0; part < bytes; part += tensor_part_bytes)
        reads.push_back(std::async(std::launch::async, [&, part] {
          checkpoint_.read(name, static_cast<std::int64_t>(begin + part),
                           static_cast<std::int64_t>(std::min(tensor_part_bytes, bytes - part)),
                           piece.data() + part);
        }));
      for (std::future<void>& done : reads) done.get();
      copy_to_device(static_cast<unsigned char*>(array.view.data) + begin, piece.data(), bytes,
                     stream_);
    }
  });
  comm_.broadcast(array.view.data, array.memory.bytes(), 0, stream_);
  return array;
}

TensorArray LayerSource::load_compute_tensor(const std::string& name) {
  TensorArray stored = load_tensor(name);
  if (stored.view.dtype == stream_.compute_dtype()) return stored;
  TensorArray converted(stream_.compute_dtype(), stored.view.rows, stored.view.cols, stream_);
  convert(stored, converted, stream_);
  return converted;
}

Norm LayerSource::load_norm(const std::string& module, std::vector<Buffer>& memory) {
  const auto load = [&](const std::string& name) -> ConstTensor {
    if (!checkpoint_.contains(name)) return {};
    TensorArray array = load_compute_tensor(name);
    memory.push_back(std::move(array.memory));
    return array.view;
  };
  Norm norm;
  norm.weight = load(module + ".weight");
  norm.bias = load(module + ".bias");
  return norm;
}

}  // namespace qpipe
