#include "pipeline/layers/layer_source.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "kernels/activation.h"
#include "kernels/alignment.h"
#include "pipeline/files/agree.h"
#include "pipeline/model/finite.h"
#include "pipeline/model/model.h"

namespace qpipe {

namespace {

constexpr std::size_t tensor_piece_bytes =
    std::size_t{32} << 20;  // of a tensor on its way from the file to the device
constexpr std::size_t tensor_part_bytes = std::size_t{8}
                                          << 20;  // of a piece, each read by a thread
constexpr std::size_t piece_bytes = std::size_t{128}
                                    << 20;  // of a layer on its way to the others' host memory
constexpr std::size_t readers = 16;         // of a layer: one does not saturate a fast disk

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
  const LayerSpec& spec = architecture_.layer(index);
  const std::vector<LinearSpec> linears = layer_linears(spec);
  Plan plan;
  const auto add = [&](TensorInfo info, bool transposed, bool waits) {
    if (transposed) std::swap(info.shape.at(0), info.shape.at(1));
    plan.slots.push_back({std::move(info), plan.bytes, transposed, waits});
    plan.bytes += aligned(static_cast<std::size_t>(plan.slots.back().info.bytes()));
  };
  for (const TensorSpec& tensor : layer_tensors(spec)) {
    const std::string name = prefix + tensor.name;
    if (tensor.role != TensorRole::weight) {
      add(checkpoint_.info(name), false, false);
      continue;
    }
    const LinearSpec& linear = linears[tensor.linear];
    const std::string module = prefix + linear.name;
    const bool packed = is_packed(checkpoint_, module);
    for (const std::string& part : weight_parts(checkpoint_, module))
      add(checkpoint_.info(part), linear.transposed && !packed, !packed && !linear.kept);
  }
  return plan;
}

namespace {

template <class Word>
void transpose_on_host(const unsigned char* from, std::int64_t rows, std::int64_t cols,
                       unsigned char* to) {
  constexpr std::int64_t tile = 32;
  const auto* source = reinterpret_cast<const Word*>(from);
  auto* target = reinterpret_cast<Word*>(to);
  for (std::int64_t r0 = 0; r0 < rows; r0 += tile)
    for (std::int64_t c0 = 0; c0 < cols; c0 += tile)
      for (std::int64_t r = r0; r < std::min(rows, r0 + tile); ++r)
        for (std::int64_t c = c0; c < std::min(cols, c0 + tile); ++c)
          target[c * rows + r] = source[r * cols + c];
}

// The tensor's bytes, checked; [in, out] in the file becomes [out, in].
void read_tensor(const Checkpoint& checkpoint, StoredFormat format, const TensorInfo& info,
                 bool transposed, unsigned char* to) {
  const TensorInfo& stored = checkpoint.info(info.name);
  const DType as = number_type(format, checkpoint, stored);
  if (!transposed) {
    checkpoint.read(info.name, to);
    return check_finite(checkpoint, stored, as, 0, to, stored.bytes());
  }
  std::vector<unsigned char> bytes(static_cast<std::size_t>(info.bytes()));
  checkpoint.read(info.name, bytes.data());
  check_finite(checkpoint, stored, as, 0, bytes.data(), stored.bytes());
  const auto transposing = size_of(info.dtype) == 4 ? transpose_on_host<std::uint32_t>
                                                    : transpose_on_host<std::uint16_t>;
  transposing(bytes.data(), info.cols(), info.rows(), to);
}

}  // namespace

HostBuffer LayerSource::read(const Plan& plan, HostBuffer to) const {
  if (to.bytes() < plan.bytes) to = HostBuffer(plan.bytes, stream_);
  std::atomic<std::size_t> next = 0;
  const auto read_some = [&] {
    for (std::size_t i = next++; i < plan.slots.size(); i = next++)
      read_tensor(checkpoint_, format_, plan.slots[i].info, plan.slots[i].transposed,
                  to.data() + plan.slots[i].offset);
  };
  std::vector<std::future<void>> reads;
  for (std::size_t i = 0; i < std::min(readers, plan.slots.size()); ++i)
    reads.push_back(std::async(std::launch::async, read_some));
  for (std::future<void>& done : reads) done.wait();
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
  for (const Slot& slot : plan.slots) {
    void* data = by_step ? host_.data() + slot.offset
                         : static_cast<unsigned char*>(blob.data()) + slot.offset;
    if (by_step && !slot.waits) {
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
  layer.kind = architecture_.kind(index);
  layer.spec = &architecture_.kinds[layer.kind];
  const DType compute = stream_.compute_dtype();
  const std::string prefix = layer_prefix(architecture_, index);
  const auto in_compute_type = [&](ConstTensor tensor) -> ConstTensor {
    if (tensor.empty() || tensor.dtype == compute) return tensor;
    TensorArray copy(compute, tensor.rows, tensor.cols, stream_);
    convert(tensor, copy, stream_);
    layer.memory.push_back(std::move(copy.memory));
    return copy.view;
  };
  const auto bias_of = [&](const LinearSpec& spec) -> ConstTensor {
    return spec.bias ? stored.at(prefix + spec.name + ".bias") : Tensor{};
  };
  for (const LinearSpec& spec : layer_linears(*layer.spec)) {
    Linear linear;
    linear.name = prefix + spec.name;
    linear.transposed = spec.transposed;
    if (is_packed(checkpoint_, linear.name)) {
      require(!by_step, "load_layer: packed weights do not wait");
      TensorArray weight(compute, spec.out_features, spec.in_features, stream_);
      PackedParts parts;
      for (const std::string& name : weight_parts(checkpoint_, linear.name))
        parts[name.substr(linear.name.size())] = stored.at(name);
      read_back(format_, linear.name, parts, weight, stream_);
      linear.weight = weight.view;
      layer.memory.push_back(std::move(weight.memory));
    } else {
      const Tensor tensor = stored.at(linear.name + ".weight");
      if (by_step && spec.kept) layer.waiting.emplace_back();  // it stays on the device
      if (by_step && !spec.kept) {
        linear.stored = ConstTensor(nullptr, tensor.dtype, tensor.rows, tensor.cols);
        linear.weight = Tensor(nullptr, compute, tensor.rows, tensor.cols);
        layer.waiting.push_back(
            {static_cast<unsigned char*>(tensor.data), tensor.dtype, false, {}, {}, {}});
      } else {
        linear.stored = tensor;
        linear.weight = tensor;
        if (tensor.dtype != compute) {
          TensorArray copy(compute, tensor.rows, tensor.cols, stream_);
          convert(tensor, copy, stream_);
          layer.memory.push_back(std::move(copy.memory));
          linear.weight = copy.view;
        }
      }
    }
    linear.stored_bias = bias_of(spec);
    linear.bias = in_compute_type(linear.stored_bias);
    layer.linears.push_back(linear);
  }
  // One tensor, or the rows of several.
  const auto joined = [&](const std::vector<std::string>& names) -> ConstTensor {
    if (names.empty()) return {};
    const ConstTensor first = stored.at(prefix + names.front());
    if (names.size() == 1) return first;
    TensorArray rows(first.dtype, static_cast<std::int64_t>(names.size()), first.cols, stream_);
    for (std::size_t r = 0; r < names.size(); ++r)
      convert(stored.at(prefix + names[r]), rows.view.row_range(static_cast<std::int64_t>(r), 1),
              stream_);
    layer.memory.push_back(std::move(rows.memory));
    return rows.view;
  };
  for (const NormTensors& tensors : layer_norms(*layer.spec)) {
    Norm& norm = layer.norms[tensors.name];
    norm.stored_weight = joined(tensors.weights);
    norm.stored_bias = joined(tensors.biases);
    norm.weight = in_compute_type(norm.stored_weight);
    norm.bias = in_compute_type(norm.stored_bias);
  }
  for (const TensorSpec& tensor : layer_tensors(*layer.spec)) {
    if (tensor.role != TensorRole::constant && tensor.role != TensorRole::vector) continue;
    const ConstTensor value = stored.at(prefix + tensor.name);
    if (tensor.role == TensorRole::constant) {
      layer.constants[tensor.name] = {in_compute_type(value), {}, value, {}};
      continue;
    }
    Array<float> copy(value.rows, value.cols, stream_);
    convert(value, copy.view, stream_);
    layer.vectors[tensor.name] = {copy.view.data, 1, copy.view.size()};
    layer.memory.push_back(std::move(copy.memory));
  }
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
      check_finite(checkpoint_, info, info.dtype, static_cast<std::int64_t>(begin), piece.data(),
                   static_cast<std::int64_t>(bytes));
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

ConstTensor LayerSource::load_small(const std::string& name, std::vector<Buffer>& memory) {
  TensorArray array = load_compute_tensor(name);
  memory.push_back(std::move(array.memory));
  return array.view;
}

Norm LayerSource::load_norm(const std::optional<NormSpec>& spec, std::vector<Buffer>& memory) {
  Norm norm;
  if (!spec) return norm;
  if (spec->weight) norm.weight = load_small(spec->name + ".weight", memory);
  if (spec->bias) norm.bias = load_small(spec->name + ".bias", memory);
  return norm;
}

Linear LayerSource::load_linear(const std::optional<LinearSpec>& spec,
                                std::vector<Buffer>& memory) {
  Linear linear;
  if (!spec) return linear;
  linear.name = spec->name;
  TensorArray weight = load_compute_tensor(spec->name + ".weight");
  linear.weight = weight.view;
  memory.push_back(std::move(weight.memory));
  if (spec->bias) linear.bias = load_small(spec->name + ".bias", memory);
  return linear;
}

EmbeddingWeights LayerSource::load_embedding() {
  const Embedding& e = architecture_.embedding;
  EmbeddingWeights weights;
  weights.tokens = load_tensor(e.tokens);
  if (!e.positions.empty()) weights.positions = load_tensor(e.positions);
  weights.norm = load_norm(e.norm, weights.memory);
  weights.projection = load_linear(e.projection, weights.memory);
  if (const auto& p = architecture_.per_layer) {
    weights.per_layer_tokens = load_tensor(p->tokens);
    weights.per_layer_projection = load_linear(p->projection, weights.memory);
    weights.per_layer_norm = load_norm(p->norm, weights.memory);
  }
  return weights;
}

HeadWeights LayerSource::load_head() {
  const Head& head = architecture_.head;
  HeadWeights weights;
  weights.norm = load_norm(head.norm, weights.memory);
  weights.projection = load_linear(head.projection, weights.memory);
  weights.head =
      load_compute_tensor(head.tied ? architecture_.embedding.tokens : head.name + ".weight");
  if (head.bias) weights.bias = load_compute_tensor(head.name + ".bias");
  return weights;
}

}  // namespace qpipe
