#include "pipeline/store.h"

#include <cmath>
#include <cstring>

#include "pipeline/error.h"

namespace qpipe {

namespace {

// At most this many layers' writes wait in memory.
constexpr std::size_t most_pending = 16;

float element(const std::vector<unsigned char>& data, DType dtype, std::size_t index) {
  switch (dtype) {
    case DType::bf16: {
      bf16 value;
      std::memcpy(&value, data.data() + index * sizeof(value), sizeof(value));
      return to_float(value);
    }
    case DType::f16: {
      f16 value;
      std::memcpy(&value, data.data() + index * sizeof(value), sizeof(value));
      return to_float(value);
    }
    default: {
      float value = 0.0f;
      std::memcpy(&value, data.data() + index * sizeof(value), sizeof(value));
      return value;
    }
  }
}

std::vector<unsigned char> convert_tensor(const TensorInfo& from, const std::vector<unsigned char>& data, DType to) {
  if (from.dtype == to) return data;
  const std::size_t count = data.size() / size_of(from.dtype);
  std::vector<unsigned char> result(count * size_of(to));
  for (std::size_t i = 0; i < count; ++i) {
    const float value = element(data, from.dtype, i);
    const std::uint16_t bits = to == DType::f16 ? to_f16(value).bits : to_bf16(value).bits;
    if (std::isfinite(value) && to == DType::f16 && !std::isfinite(to_float(f16{bits})))
      throw UserError(ExitCode::data,
                      from.name + ": the value " + std::to_string(value) + " does not fit float16; set output.dtype = \"bfloat16\"");
    std::memcpy(result.data() + i * sizeof(bits), &bits, sizeof(bits));
  }
  return result;
}

}  // namespace

void Store::put(const std::string& module, const QuantizedLinear& quantized, Stream& stream) {
  const LinearSettings& s = quantized.settings;
  bool owned = false;
  for (const NamedTensor& tensor : gptq_tensors(module, 0, 0, s.bits, 1)) owned = owned || shards_.owns(tensor.name);
  if (!owned) return;
  std::vector<PackedTensor> mine;
  for (PackedTensor& tensor : pack_gptq(module, quantized, plan_.format, stream)) {
    if (!shards_.owns(tensor.info.name)) continue;
    if (plan_.may_need_v2 && tensor.info.name.ends_with(".qzeros"))
      zeros_[tensor.info.name] = {std::move(tensor), s.bits};
    else
      mine.push_back(std::move(tensor));
  }
  write_later(std::move(mine));
}

void Store::replace(const std::string& name, const std::vector<float>& values) {
  if (!owns(name)) return;
  TensorInfo info = checkpoint_.info(name);
  info.dtype = DType::f32;
  std::vector<unsigned char> data(values.size() * sizeof(float));
  if (static_cast<std::int64_t>(data.size()) != info.bytes()) throw std::invalid_argument("Store::replace: " + name + " has another size");
  std::memcpy(data.data(), values.data(), data.size());
  replaced_.insert(name);
  std::vector<PackedTensor> tensor(1);
  tensor.front().info.name = name;
  tensor.front().data = convert_tensor(info, data, plan_.dtype);
  write_later(std::move(tensor));
}

void Store::write_later(std::vector<PackedTensor> tensors) {
  if (pending_.size() >= most_pending) {
    pending_.front().get();
    pending_.erase(pending_.begin());
  }
  pending_.push_back(std::async(std::launch::async, [this, tensors = std::move(tensors)] {
    for (const PackedTensor& tensor : tensors) shards_.write(tensor.info.name, tensor.data.data());
  }));
}

void Store::copy_tensor(const TensorInfo& info) {
  const TensorInfo& stored = checkpoint_.info(info.name);
  std::vector<unsigned char> data(static_cast<std::size_t>(stored.bytes()));
  checkpoint_.read(info.name, data.data());
  shards_.write(info.name, convert_tensor(stored, data, info.dtype).data());
}

void Store::finish(bool zero_of_zero) {
  for (std::future<void>& write : pending_) write.get();
  pending_.clear();
  for (auto& [name, entry] : zeros_) {
    if (zero_of_zero) zeros_v1_to_v2(entry.first.data, entry.second);
    shards_.write(name, entry.first.data.data());
  }
  for (const TensorInfo& info : plan_.tensors)
    if (shards_.owns(info.name) && checkpoint_.contains(info.name) && !replaced_.contains(info.name)) copy_tensor(info);
  shards_.finish();
}

}  // namespace qpipe
