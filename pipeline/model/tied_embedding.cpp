#include "pipeline/model/tied_embedding.h"

#include <algorithm>

#include "kernels/activation.h"
#include "pipeline/model/model.h"
#include "stages/layer.h"

namespace qpipe {

namespace {

constexpr std::int64_t piece_elements = std::int64_t{1} << 20;

bool is_name_end(const std::string& name, const std::string& end) {
  return name.ends_with(end) &&
         (name.size() == end.size() || name[name.size() - end.size() - 1] == '.');
}

// What stands before the decoder's names in this checkpoint, as its first layer says.
std::optional<std::string> root_of(const Architecture& a, const Checkpoint& checkpoint) {
  const std::string end = a.layer_prefix.substr(a.root.size()) + "0.";
  for (const std::string& name : checkpoint.names()) {
    const std::size_t at = name.find(end);
    if (at != std::string::npos && (at == 0 || name[at - 1] == '.')) return name.substr(0, at);
  }
  return std::nullopt;
}

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

// Elements [begin, begin + count) of a tensor.
std::vector<float> floats_of(const Checkpoint& checkpoint, const TensorInfo& info,
                             std::int64_t begin, std::int64_t count, Stream& host) {
  const auto size = static_cast<std::int64_t>(size_of(info.dtype));
  std::vector<unsigned char> bytes(static_cast<std::size_t>(count * size));
  checkpoint.read(info.name, begin * size, count * size, bytes.data());
  std::vector<float> values(static_cast<std::size_t>(count));
  convert(ConstTensor(bytes.data(), info.dtype, 1, count), Matrix<float>(values.data(), 1, count),
          host);
  return values;
}

}  // namespace

std::optional<RenamedTensor> embedding_stored_as_head(const Checkpoint& checkpoint) {
  std::optional<Architecture> read;
  try {
    read = read_architecture(checkpoint.config(), (checkpoint.folder() / "config.json").string());
  } catch (const UserError&) {
    return std::nullopt;  // whoever needs the architecture says why
  }
  const Architecture& a = *read;
  if (!a.head.tied) return std::nullopt;
  const std::string end = a.embedding.tokens.substr(a.root.size());
  std::string head;
  for (const std::string& name : checkpoint.names()) {
    if (is_name_end(name, end)) return std::nullopt;
    if (is_name_end(name, a.head.name + ".weight") && head.empty()) head = name;
  }
  const std::optional<std::string> root = root_of(a, checkpoint);
  if (head.empty() || !root) return std::nullopt;
  return RenamedTensor{head, *root + end};
}

bool head_differs_from_embedding(const Architecture& a, const Checkpoint& checkpoint) {
  const std::string head = a.head.name + ".weight";
  if (!checkpoint.has_weights() || !checkpoint.contains(head) ||
      !checkpoint.contains(a.embedding.tokens))
    return false;
  const TensorInfo& one = checkpoint.info(head);
  const TensorInfo& other = checkpoint.info(a.embedding.tokens);
  if (one.shape != other.shape || !is_float(one.dtype) || !is_float(other.dtype))
    return false;  // a fault of its own
  const std::int64_t elements = one.bytes() / static_cast<std::int64_t>(size_of(one.dtype));
  Stream host(Backend::cpu, 0);
  for (std::int64_t begin = 0; begin < elements; begin += piece_elements) {
    const std::int64_t count = std::min(piece_elements, elements - begin);
    if (floats_of(checkpoint, one, begin, count, host) !=
        floats_of(checkpoint, other, begin, count, host))
      return true;
  }
  return false;
}

}  // namespace qpipe
