#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "pipeline/files/error.h"
#include "pipeline/files/suggest.h"
#include "pipeline/model/model.h"
#include "pipeline/model/passed_through.h"
#include "pipeline/model/read_back.h"
#include "stages/layer.h"

namespace qpipe {

namespace {

using Shape = std::vector<std::int64_t>;

std::string text_of(const Shape& shape) {
  std::string text;
  for (const std::int64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "[" + text + "]";
}

struct Check {
  const Checkpoint& checkpoint;
  StoredFormat format;
  std::size_t most;
  std::set<std::string> known;
  std::vector<std::string> faults;
  std::vector<std::string> unread{};  // tensors that the decoder doesn't need
  std::string asked_by{};             // what says so, where it is more than config.json

  bool done() const { return faults.size() >= most; }

  void fail(const std::string& message) {
    if (!done()) faults.push_back(checkpoint.folder().string() + ": " + message);
  }

  void weights(const std::string& name, const Shape& shape) {
    if (!known.insert(name).second || done()) return;
    if (!checkpoint.contains(name)) {
      // Looking through all names takes long: the first fault's advice is enough.
      std::string near = faults.empty() ? nearest_name(name, unread) : "";
      if (near.empty() && faults.empty()) near = nearest_name(name, checkpoint.names());
      return fail("tensor '" + name + "' is missing, and config.json" + asked_by + " asks for it" +
                  (near.empty() ? "" : "; the nearest name is '" + near + "'"));
    }
    const TensorInfo& info = checkpoint.info(name);
    if (info.shape != shape)
      return fail("tensor '" + name + "' has shape " + text_of(info.shape) + ", but config.json" +
                  asked_by + " makes it " + text_of(shape));
    if (info.dtype != DType::f32 && info.dtype != DType::f16 && info.dtype != DType::bf16)
      fail("tensor '" + name + "' has dtype " + std::string(name_of(info.dtype)) +
           "; F32, F16 or BF16 is needed");
  }

  void packed(const std::string& module, const LinearSpec& spec) {
    try {
      for (const std::string& name :
           check_packed_linear(format, checkpoint, module, spec.out_features, spec.in_features)
               .names)
        known.insert(name);
    } catch (const UserError& error) {
      if (!done()) faults.emplace_back(error.what());
      for (const std::string& name : weight_parts(checkpoint, module))
        known.insert(name);  // one fault a linear
    }
  }

  void linear(const std::string& module, const LinearSpec& spec) {
    if (format == StoredFormat::unquantized && !checkpoint.contains(module + ".weight") &&
        is_packed(checkpoint, module)) {
      fail("linear '" + module + "' is packed ('" + weight_parts(checkpoint, module).front() +
           "'), but config.json has no quantization_config");
      for (const std::string& name : weight_parts(checkpoint, module)) known.insert(name);
    } else if (format != StoredFormat::unquantized && is_packed(checkpoint, module)) {
      packed(module, spec);
    } else {
      weights(module + ".weight", spec.transposed ? Shape{spec.in_features, spec.out_features}
                                                  : Shape{spec.out_features, spec.in_features});
    }
  }

  // Axes of one element count for nothing: [], [1]; [n], [1, n].
  void vector(const std::string& name, const Shape& shape) {
    const auto without_ones = [](Shape axes) {
      axes.erase(std::remove(axes.begin(), axes.end(), 1), axes.end());
      return axes;
    };
    const bool alike =
        checkpoint.contains(name) &&
        checkpoint.info(name).shape.size() <= std::max<std::size_t>(2, shape.size()) &&
        without_ones(checkpoint.info(name).shape) == without_ones(shape);
    weights(name, alike ? checkpoint.info(name).shape : shape);
  }

  // Of a quantized checkpoint: parts that the format doesn't have, or beside an unpacked weight.
  // Loaders would take the linear for something else. Other tensors that the decoder doesn't need
  // are no faults.
  void stray_parts(const std::set<std::string>& decoder) {
    if (format == StoredFormat::unquantized) return;
    for (const std::string& name : checkpoint.names()) {
      if (known.contains(name)) continue;
      const std::string module = linear_of(name, decoder);
      if (!module.empty())
        fail("tensor '" + name + "' is unknown: quantization_config gives '" + module +
             "' no such part beside its others");
    }
  }
};

std::vector<unsigned char> bytes_of(const Checkpoint& checkpoint, const std::string& name) {
  std::vector<unsigned char> bytes(static_cast<std::size_t>(checkpoint.info(name).bytes()));
  checkpoint.read(name, bytes.data());
  return bytes;
}

float element_of(const Checkpoint& checkpoint, const std::string& name) {
  const std::vector<unsigned char> bytes = bytes_of(checkpoint, name);
  const auto as = [&](auto value) {
    std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
    return to_float(value);
  };
  switch (checkpoint.info(name).dtype) {
    case DType::f32: return as(0.0f);
    case DType::f16: return as(f16{});
    case DType::bf16: return as(bf16{});
    default: return std::numeric_limits<float>::quiet_NaN();
  }
}

// β and ε of xIELU are constants of the family that its checkpoints hold all the same: they must be
// what is computed, but for rounding to bfloat16.
void check_xielu(Check& check, const std::string& prefix, const Xielu& xielu) {
  const std::string module = prefix + xielu.alpha_p.substr(0, xielu.alpha_p.rfind('.') + 1);
  const std::pair<const char*, float> constants[] = {{"beta", xielu.beta}, {"eps", xielu.eps}};
  for (const auto& [key, value] : constants) {
    const std::string name = module + key;
    if (check.done() || !check.checkpoint.contains(name)) continue;
    const float stored = element_of(check.checkpoint, name);
    if (!(std::fabs(stored - value) <= std::fabs(value) / 128.0f))
      check.fail("'" + name + "' is " + std::to_string(stored) + ": it must be " +
                 std::to_string(value));
  }
}

}  // namespace

std::vector<TensorInfo> expected_tensors(const Architecture& a, DType dtype) {
  std::vector<TensorInfo> tensors;
  const auto add = [&](const std::string& prefix, const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs) tensors.push_back({prefix + spec.name, dtype, spec.shape});
  };
  add("", embedding_tensors(a));
  for (std::int64_t layer = 0; layer < a.layers; ++layer)
    add(layer_prefix(a, layer), layer_tensors(a.layer(layer)));
  add("", head_tensors(a));
  return tensors;
}

namespace {

// Whether the decoder reads the tensor, which may be a part of a quantized linear.
bool needs(const Architecture& a, const std::set<std::string>& decoder,
           const Checkpoint& checkpoint, const std::string& name) {
  if (a.head.tied && name == a.head.name + ".weight") return false;
  return decoder.contains(name) ||
         (checkpoint.config().contains("quantization_config") && !linear_of(name, decoder).empty());
}

}  // namespace

std::vector<std::string> tensor_faults(const Architecture& a, const Checkpoint& checkpoint,
                                       std::size_t most) {
  Check check{
      checkpoint,
      read_stored_format(checkpoint.config(), (checkpoint.folder() / "config.json").string()),
      most,
      {},
      {}};
  const std::set<std::string> decoder = decoder_tensors(a);
  check.unread = passed_through(decoder, checkpoint);
  for (const auto& [name, fault] : checkpoint.faults())
    if (needs(a, decoder, checkpoint, name) && !check.done()) {
      check.faults.emplace_back(fault.what());
      check.known.insert(name);
    }
  for (const TensorSpec& tensor : embedding_tensors(a)) check.weights(tensor.name, tensor.shape);
  for (std::int64_t layer = 0; layer < a.layers; ++layer) {
    const std::string prefix = layer_prefix(a, layer);
    if (!a.kinds_by.empty()) check.asked_by = fmt::format(" ({}, layer {})", a.kinds_by, layer);
    const std::vector<LinearSpec> linears = layer_linears(a.layer(layer));
    for (const TensorSpec& tensor : layer_tensors(a.layer(layer))) {
      const std::string name = prefix + tensor.name;
      switch (tensor.role) {
        case TensorRole::weight:
          check.linear(prefix + linears[tensor.linear].name, linears[tensor.linear]);
          break;
        case TensorRole::linear_bias:
        case TensorRole::norm: check.weights(name, tensor.shape); break;
        case TensorRole::constant:
        case TensorRole::vector: check.vector(name, tensor.shape); break;
      }
    }
    const auto* mlp = std::get_if<Mlp>(&a.layer(layer).mlp);
    if (mlp != nullptr && mlp->xielu) check_xielu(check, prefix, *mlp->xielu);
  }
  check.asked_by.clear();
  for (const TensorSpec& tensor : head_tensors(a)) check.weights(tensor.name, tensor.shape);

  const std::string head = a.head.name + ".weight";
  if (a.head.tied && checkpoint.contains(head)) check.weights(head, {a.vocab, a.embedding.width});

  check.stray_parts(decoder);
  return check.faults;
}

void check_tensors(const Architecture& architecture, const Checkpoint& checkpoint) {
  const std::set<std::string> decoder = decoder_tensors(architecture);
  for (const auto& [name, fault] : checkpoint.faults())
    if (needs(architecture, decoder, checkpoint, name)) throw fault;
  const std::vector<std::string> faults = tensor_faults(architecture, checkpoint, 1);
  if (!faults.empty()) throw UserError(ExitCode::data, faults.front());
}

}  // namespace qpipe
