#include "pipeline/journal/store.h"

#include <spdlog/spdlog.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/activation.h"
#include "pipeline/files/agree.h"
#include "pipeline/files/durable_file.h"
#include "pipeline/files/xxh3.h"

namespace qpipe {

namespace {

// Finite values in another float type, a piece of a tensor at a time.
class Conversion {
 public:
  Conversion(const TensorInfo& from, DType to) : from_(from), to_(to), values_(count_of(from)) {
    if (from.dtype != to) result_.resize(values_.size() * size_of(to));
  }

  // data: `count` elements, at most copied_elements. Valid until the next piece. Throws UserError
  // that names the tensor when a value is not finite or does not fit.
  const unsigned char* convert_piece(const unsigned char* data, std::int64_t count) {
    const Matrix<float> floats(values_.data(), 1, count);
    convert(ConstTensor(data, from_.dtype, 1, count), floats, host_);
    float largest = 0.0f;
    float poison = 0.0f;  // NaN when some value is not finite
#pragma omp simd reduction(max : largest) reduction(+ : poison)
    for (std::int64_t i = 0; i < count; ++i) {
      const float magnitude = std::fabs(values_[static_cast<std::size_t>(i)]);
      largest = magnitude > largest ? magnitude : largest;
      poison += magnitude * 0.0f;
    }
    if (std::isnan(poison))
      throw UserError(
          ExitCode::data,
          from_.name + ": a value is not finite; the checkpoint is damaged, so get it again");
    if (to_ == DType::f16 && largest >= 65520.0f)
      throw UserError(ExitCode::data, from_.name + ": the value " + std::to_string(largest) +
                                          " does not fit float16; set output.dtype = \"bfloat16\"");
    if (from_.dtype == to_) return data;
    convert(floats, Tensor(result_.data(), to_, 1, count), host_);
    return result_.data();
  }

 private:
  static std::size_t count_of(const TensorInfo& info) {
    return static_cast<std::size_t>(
        std::min(copied_elements, info.bytes() / static_cast<std::int64_t>(size_of(info.dtype))));
  }

  const TensorInfo& from_;
  DType to_;
  Stream host_{Backend::cpu, 0};
  std::vector<float> values_;
  std::vector<unsigned char> result_;
};

}  // namespace

Store::Store(const QuantizePlan& plan, const Checkpoint& checkpoint, ShardSet& shards,
             const Journal& journal, const Teams& teams, Comm& comm)
    : plan_(plan), checkpoint_(checkpoint), shards_(shards), journal_(journal), comm_(comm) {
  int next = 0;
  std::vector<int> next_in_team(static_cast<std::size_t>(teams.teams), 0);
  const auto take_turns = [&](const std::string& name) {
    if (!name.starts_with(plan.layer_prefix)) return next++ % comm.size();
    const int team = teams.team_of_layer(std::stoll(name.substr(plan.layer_prefix.size())));
    return teams.rank_at(team,
                         next_in_team[static_cast<std::size_t>(team)]++ % teams.ranks_of_team);
  };
  for (const auto& [module, settings] : plan.modules) {
    writer_of_[module] = take_turns(module);
    if (plan.may_need_v2 && !settings.skip) bits_of_[module + ".qzeros"] = settings.bits;
  }
  std::vector<TensorInfo> outside;
  std::vector<TensorInfo> inside;
  for (const TensorInfo& info : plan.kept) {
    if (take_turns(info.name) != comm.rank()) continue;
    if (!info.name.starts_with(plan.layer_prefix))
      outside.push_back(info);
    else if (plan.casts())  // nothing is replaced
      inside.push_back(info);
    else
      to_copy_[info.name] = info;
  }
  take_up_finished_layers();
  for (const TensorInfo& info : outside)
    copies_.push_back(start([this, info] { copy_tensor(info); }));
  if (!inside.empty())
    copies_.push_back(start([this, inside = std::move(inside)] {
      for (const TensorInfo& info : inside) copy_tensor(info);
    }));
  pass_through(next);
}

// One after the other: there may be thousands.
void Store::pass_through(int next) {
  std::vector<TensorInfo> mine;
  for (const TensorInfo& info : plan_.passed)
    if (next++ % comm_.size() == comm_.rank()) mine.push_back(info);
  if (mine.empty()) return;
  copies_.push_back(start([this, mine = std::move(mine)] {
    std::vector<unsigned char> data;
    for (const TensorInfo& info : mine) {
      data.resize(static_cast<std::size_t>(std::min(copied_bytes, info.bytes())));
      shards_.write(info.name, copied_bytes, [&](std::int64_t begin, std::int64_t count) {
        checkpoint_.read(info.name, begin, count, data.data());
        return data.data();
      });
      spdlog::debug("{}: passed through", info.name);
    }
  }));
}

Store::~Store() {
  for (std::future<void>& copy : copies_) copy.wait();
  wait_for_commits();
  part_.reset();
  complete_parts_.clear();  // after a fault
}

void Store::take_up_finished_layers() {
  std::map<std::string, TensorInfo> tensors;
  for (const TensorInfo& info : plan_.tensors) tensors[info.name] = info;
  finished_ = find_finished_layers(journal_, tensors, shards_, comm_);
  for (const auto& [layer, finished] : finished_)
    for (const LayerRecord& part : finished.parts) {
      for (const auto& [name, hash] : part.tensors) to_copy_.erase(name);
      if (part.held.empty() || layer % comm_.size() != comm_.rank()) continue;
      const SafetensorsFile file(journal_.folder() / (part.stem() + ".safetensors"));
      for (const auto& [name, hash] : part.held) {
        zeros_[name].resize(static_cast<std::size_t>(file.info(name).bytes()));
        file.read(name, zeros_[name].data());
      }
    }
}

std::function<void()> Store::guarded(std::function<void()> work) {
  return [this, work = std::move(work)] {
    if (fault()) return;
    const std::optional<UserError> fault = fault_of(work);
    const std::lock_guard lock(fault_mutex_);
    if (fault && !fault_) fault_ = fault;
  };
}

std::future<void> Store::start(std::function<void()> work) {
  return std::async(std::launch::async, guarded(std::move(work)));
}

std::optional<UserError> Store::fault() const {
  const std::lock_guard lock(fault_mutex_);
  return fault_;
}

void Store::write(Part& part, const PackedTensor& tensor) {
  Xxh3 hash;
  hash.add(tensor.data.data(), tensor.data.bytes());
  shards_.write(tensor.info.name, tensor.data.data());
  const std::lock_guard lock(part.mutex);
  part.record.tensors[tensor.info.name] = hash.hexadecimal();
}

std::vector<PackedTensor> Store::pack(const std::string& module, const QuantizedLinear& quantized,
                                      Stream& stream) const {
  return pack_integer(module, quantized, plan_.storage, stream);
}

void Store::put(const std::string& module, const QuantizedLinear& quantized, Stream& stream) {
  if (writer_of_.at(module) == comm_.rank()) put(pack(module, quantized, stream));
}

void Store::put(std::vector<PackedTensor> all) {
  std::vector<PackedTensor> tensors;
  for (PackedTensor& tensor : all)
    (bits_of_.contains(tensor.info.name) ? part_->held : tensors).push_back(std::move(tensor));
  part_->writes.push_back(
      writers_.run(guarded([this, part = part_.get(), tensors = std::move(tensors)]() mutable {
        const std::vector<PackedTensor> freed_soon =
            std::move(tensors);  // the future keeps what the lambda has until the commit
        for (const PackedTensor& tensor : freed_soon) write(*part, tensor);
      })));
}

void Store::commit(std::int64_t layer, int part, int parts, const LayerFindings& findings) {
  wait_for_commits();
  for (const PackedTensor& tensor : part_->held)
    zeros_[tensor.info.name].assign(tensor.data.begin(), tensor.data.end());
  part_->record.layer = layer;
  part_->record.part = part;
  part_->record.parts = parts;
  part_->record.findings = findings;
  commit_in_background(std::exchange(part_, std::make_shared<Part>()));
}

std::shared_ptr<Store::Part> Store::written_part(std::int64_t layer) {
  const std::lock_guard lock(commit_mutex_);
  std::shared_ptr<Part>& part = written_parts_[layer];
  if (!part) part = std::make_shared<Part>();
  return part;
}

void Store::write(std::int64_t layer, const std::vector<PackedTensor>& tensors) {
  const std::shared_ptr<Part> part = written_part(layer);
  for (const PackedTensor& tensor : tensors) write(*part, tensor);
}

void Store::commit_written(std::int64_t layer, std::function<void()> committed) {
  const std::shared_ptr<Part> part = written_part(layer);
  part->record.layer = layer;
  part->committed = std::move(committed);
  commit_in_background(part);
}

void Store::commit_in_background(std::shared_ptr<Part> part) {
  const std::lock_guard lock(commit_mutex_);
  written_parts_.erase(part->record.layer);
  complete_parts_.push_back(std::move(part));
  if (std::exchange(commits_, true)) return;
  commit_ = start([this] { commit_complete_parts(); });
}

void Store::commit_complete_parts() {
  for (;;) {
    std::vector<std::shared_ptr<Part>> parts;
    {
      const std::lock_guard lock(commit_mutex_);
      parts.swap(complete_parts_);
      commits_ = !parts.empty();
      if (!commits_) return;
    }
    std::vector<std::string> names;
    for (const auto& part : parts) {
      for (std::future<void>& write : part->writes) write.wait();
      for (const auto& [name, hash] : part->record.tensors) names.push_back(name);
    }
    if (fault()) return;
    shards_.sync(names);
    spdlog::debug("the tensors of {} layers are on the disk", parts.size());
    write_records(parts);
    for (const auto& part : parts) part->committed();
    spdlog::debug("and their records");
  }
}

void Store::wait_for_commits() {
  std::future<void> last;
  {
    const std::lock_guard lock(commit_mutex_);
    last = std::move(commit_);
  }
  if (last.valid()) last.get();
}

// After the parts' tensors are on the disk.
void Store::write_records(const std::vector<std::shared_ptr<Part>>& parts) {
  std::vector<TextFile> files;
  for (const auto& part : parts) {
    write_held(*part);
    files.push_back({part->record.stem() + ".json", to_text(part->record)});
  }
  write_text_files(journal_.folder(), files);
}

void Store::write_held(Part& part) {
  if (part.held.empty()) return;
  LayerRecord& record = part.record;
  std::vector<TensorInfo> infos;
  for (const PackedTensor& tensor : part.held)
    infos.push_back({tensor.info.name, tensor.info.dtype, tensor.info.shape});
  SafetensorsWriter file(journal_.folder() / (record.stem() + ".safetensors"), infos);
  for (const PackedTensor& tensor : part.held) {
    file.write(tensor.info.name, tensor.data.data());
    Xxh3 hash;
    hash.add(tensor.data.data(), tensor.data.bytes());
    record.held[tensor.info.name] = hash.hexadecimal();
  }
  file.finish();
}

void Store::replace(const std::string& name, const std::vector<float>& values) {
  const auto found = to_copy_.find(name);
  if (found == to_copy_.end()) return;
  const TensorInfo to = found->second;
  TensorInfo from = to;
  from.dtype = DType::f32;
  if (static_cast<std::int64_t>(values.size() * sizeof(float)) != from.bytes())
    throw std::invalid_argument("Store::replace: " + name + " has another size");
  std::vector<unsigned char> data;
  Conversion conversion(from, to.dtype);
  const auto all = static_cast<std::int64_t>(values.size());
  for (std::int64_t begin = 0; begin < all; begin += copied_elements) {
    const std::int64_t count = std::min(copied_elements, all - begin);
    const unsigned char* piece = conversion.convert_piece(
        reinterpret_cast<const unsigned char*>(values.data() + begin), count);
    data.insert(data.end(), piece, piece + count * static_cast<std::int64_t>(size_of(to.dtype)));
  }
  to_copy_.erase(found);
  std::vector<PackedTensor> tensors;
  tensors.push_back({{name, to.dtype, to.shape}, std::move(data)});
  put(std::move(tensors));
}

void Store::copy_tensor(const TensorInfo& to) {
  const TensorInfo& from = checkpoint_.info(to.name);
  const auto stored = static_cast<std::int64_t>(size_of(from.dtype));
  const auto written = static_cast<std::int64_t>(size_of(to.dtype));
  Conversion conversion(from, to.dtype);
  std::vector<unsigned char> data(
      static_cast<std::size_t>(std::min(copied_elements * stored, from.bytes())));
  shards_.write(to.name, copied_elements * written, [&](std::int64_t begin, std::int64_t bytes) {
    const std::int64_t count = bytes / written;
    checkpoint_.read(to.name, begin / written * stored, count * stored, data.data());
    return conversion.convert_piece(data.data(), count);
  });
  spdlog::debug("{}: copied", to.name);
}

void Store::write_the_rest(bool zero_of_zero) {
  for (std::future<void>& copy : copies_) copy.wait();
  for (std::future<void>& write : part_->writes) write.wait();
  wait_for_commits();
  if (const auto failed = fault()) throw *failed;
  for (auto& [name, data] : zeros_) {
    if (zero_of_zero) zeros_v1_to_v2(data, bits_of_.at(name));
    shards_.write(name, data.data());
  }
  for (const auto& [name, info] : to_copy_) copy_tensor(info);
}

void Store::finish(bool zero_of_zero) {
  on_all(comm_, [&] { write_the_rest(zero_of_zero); });
  shards_.finish(comm_);
}

}  // namespace qpipe
