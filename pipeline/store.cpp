#include "pipeline/store.h"

#include <cmath>
#include <cstring>

#include "kernels/activation.h"
#include "pipeline/error.h"

namespace qpipe {

namespace {

// At most this many pieces of work wait in memory.
constexpr std::size_t most_pending = 16;

constexpr std::int64_t piece = std::int64_t{1} << 22;  // elements that are checked at once

// Finite values in another float type. Throws UserError that names the tensor when a value is not finite or does not fit.
std::vector<unsigned char> convert_tensor(const TensorInfo& from, std::vector<unsigned char> data, DType to) {
  Stream host(Backend::cpu, 0);
  const auto count = static_cast<std::int64_t>(data.size() / size_of(from.dtype));
  std::vector<unsigned char> result(from.dtype == to ? 0 : static_cast<std::size_t>(count) * size_of(to));
  std::vector<float> values(static_cast<std::size_t>(std::min(count, piece)));
  const ConstTensor all(data.data(), from.dtype, 1, count);
  for (std::int64_t begin = 0; begin < count; begin += piece) {
    const std::int64_t size = std::min(piece, count - begin);
    const Matrix<float> floats(values.data(), 1, size);
    convert(all.col_range(begin, size), floats, host);
    float largest = 0.0f;
    float poison = 0.0f;  // NaN when some value is not finite
#pragma omp simd reduction(max : largest) reduction(+ : poison)
    for (std::int64_t i = 0; i < size; ++i) {
      const float magnitude = std::fabs(values[static_cast<std::size_t>(i)]);
      largest = magnitude > largest ? magnitude : largest;
      poison += magnitude * 0.0f;
    }
    if (std::isnan(poison))
      throw UserError(ExitCode::data, from.name + ": a value is not finite; the checkpoint is damaged, so get it again");
    if (to == DType::f16 && largest >= 65520.0f)
      throw UserError(ExitCode::data,
                      from.name + ": the value " + std::to_string(largest) + " does not fit float16; set output.dtype = \"bfloat16\"");
    if (from.dtype != to) convert(floats, Tensor(result.data(), to, 1, count).col_range(begin, size), host);
  }
  return from.dtype == to ? std::move(data) : std::move(result);
}

}  // namespace

Store::Store(const QuantizePlan& plan, const Checkpoint& checkpoint, ShardSet& shards, Comm& comm)
    : plan_(plan), checkpoint_(checkpoint), shards_(shards), comm_(comm) {
  int next = 0;
  const auto take_turns = [&] { return next++ % comm.size(); };
  for (const auto& [module, settings] : plan.modules) writer_of_[module] = take_turns();
  for (const TensorInfo& info : plan.kept) {
    if (take_turns() != comm.rank()) continue;
    if (info.name.find(plan.layer_prefix) == 0)
      to_copy_[info.name] = info;
    else
      later([this, info] { copy_tensor(info); });
  }
}

Store::~Store() {
  for (std::future<void>& work : pending_) work.wait();
}

void Store::later(std::function<void()> work) {
  if (pending_.size() >= most_pending) {
    pending_.front().get();
    pending_.erase(pending_.begin());
  }
  pending_.push_back(std::async(std::launch::async, std::move(work)));
}

void Store::put(const std::string& module, const QuantizedLinear& quantized, Stream& stream) {
  if (writer_of_.at(module) != comm_.rank()) return;
  std::vector<PackedTensor> tensors;
  for (PackedTensor& tensor : pack_integer(module, quantized, plan_.storage, stream)) {
    const std::string name = tensor.info.name;
    if (plan_.may_need_v2 && name.ends_with(".qzeros"))
      zeros_[name] = {std::move(tensor), quantized.settings.bits};
    else
      tensors.push_back(std::move(tensor));
  }
  put(std::move(tensors));
}

void Store::put(std::vector<PackedTensor> tensors) {
  later([this, tensors = std::move(tensors)] {
    for (const PackedTensor& tensor : tensors) shards_.write(tensor.info.name, tensor.data.data());
  });
}

void Store::replace(const std::string& name, const std::vector<float>& values) {
  const auto found = to_copy_.find(name);
  if (found == to_copy_.end()) return;
  TensorInfo info = found->second;
  const DType dtype = info.dtype;
  info.dtype = DType::f32;
  std::vector<unsigned char> data(values.size() * sizeof(float));
  if (static_cast<std::int64_t>(data.size()) != info.bytes()) throw std::invalid_argument("Store::replace: " + name + " has another size");
  std::memcpy(data.data(), values.data(), data.size());
  PackedTensor tensor{{name, dtype, info.shape}, convert_tensor(info, std::move(data), dtype)};
  to_copy_.erase(found);
  std::vector<PackedTensor> tensors;
  tensors.push_back(std::move(tensor));
  put(std::move(tensors));
}

void Store::copy_tensor(const TensorInfo& info) {
  const TensorInfo& stored = checkpoint_.info(info.name);
  std::vector<unsigned char> data(static_cast<std::size_t>(stored.bytes()));
  checkpoint_.read(info.name, data.data());
  shards_.write(info.name, convert_tensor(stored, std::move(data), info.dtype).data());
}

void Store::write_the_rest(bool zero_of_zero) {
  for (auto& [name, entry] : zeros_) {
    if (zero_of_zero) zeros_v1_to_v2(entry.first.data, entry.second);
    shards_.write(name, entry.first.data.data());
  }
  for (const auto& [name, info] : to_copy_) copy_tensor(info);
  for (std::future<void>& work : pending_) work.get();
  pending_.clear();
}

void Store::finish(bool zero_of_zero) {
  std::string fault;
  try {
    write_the_rest(zero_of_zero);
  } catch (const std::exception& error) {
    fault = error.what();
  }
  shards_.finish(fault, comm_);
}

}  // namespace qpipe
