#include "pipeline/commands/verify_original.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "kernels/activation.h"
#include "pipeline/model/passed_through.h"
#include "pipeline/model/read_back.h"

namespace qpipe {

namespace {

constexpr std::int64_t piece_elements = std::int64_t{1} << 22;

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

std::string text_of(const TensorInfo& info) {
  return fmt::format("{} {}", name_of(info.dtype), info.shape);
}

// Whether the output's bytes are the original's, converted where the dtypes differ (floats alone).
bool has_values_of(const Checkpoint& original, const Checkpoint& checkpoint,
                   const std::string& name) {
  const TensorInfo& from = original.info(name);
  const TensorInfo& to = checkpoint.info(name);
  const auto stored = static_cast<std::int64_t>(size_of(from.dtype));
  const auto written = static_cast<std::int64_t>(size_of(to.dtype));
  const std::int64_t elements = from.bytes() / stored;
  const auto room = static_cast<std::size_t>(std::min(elements, piece_elements));
  std::vector<unsigned char> theirs(room * size_of(from.dtype));
  std::vector<unsigned char> ours(room * size_of(to.dtype));
  std::vector<unsigned char> converted(from.dtype == to.dtype ? 0 : ours.size());
  std::vector<float> values(converted.empty() ? 0 : room);
  Stream host(Backend::cpu, 0);
  for (std::int64_t begin = 0; begin < elements; begin += piece_elements) {
    const std::int64_t count = std::min(piece_elements, elements - begin);
    original.read(name, begin * stored, count * stored, theirs.data());
    checkpoint.read(name, begin * written, count * written, ours.data());
    const unsigned char* expected = theirs.data();
    if (from.dtype != to.dtype) {
      const Matrix<float> floats(values.data(), 1, count);
      convert(ConstTensor(theirs.data(), from.dtype, 1, count), floats, host);
      convert(floats, Tensor(converted.data(), to.dtype, 1, count), host);
      expected = converted.data();
    }
    if (std::memcmp(expected, ours.data(), static_cast<std::size_t>(count * written)) != 0)
      return false;
  }
  return true;
}

// Modules of the output with a weight in parts, and what begins their names: "mlp.experts." of
// "mlp.experts.3.up_proj".
struct Packed {
  std::set<std::string> linears;
  std::set<std::string> stems;

  Packed(const Checkpoint& checkpoint, const std::set<std::string>& decoder) {
    for (const std::string& name : checkpoint.names()) {
      const std::string module = module_of(name, checkpoint, decoder);
      if (module.empty() || !linears.insert(module).second) continue;
      for (std::size_t dot = module.find('.'); dot != std::string::npos;
           dot = module.find('.', dot + 1))
        stems.insert(module.substr(0, dot + 1));
    }
  }

  // Whether a quantized linear stands for the original's tensor: for MODULE.weight itself, and for
  // a stack of experts their own linears.
  bool stands_for(const TensorInfo& tensor) const {
    const std::size_t dot = tensor.name.rfind('.');
    if (dot == std::string::npos) return false;
    if (linears.contains(tensor.name.substr(0, dot)) && tensor.name.ends_with(".weight"))
      return true;
    return tensor.shape.size() >= 3 && stems.contains(tensor.name.substr(0, dot + 1));
  }

 private:
  static std::string module_of(const std::string& name, const Checkpoint& checkpoint,
                               const std::set<std::string>& decoder) {
    const std::string module = linear_of(name, decoder);
    if (!module.empty()) return is_packed(checkpoint, module) ? module : std::string();
    for (const char* part : {".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv",
                             ".SCB", ".weight.absmax"})  // an expert of a stack
      if (name.ends_with(part)) return name.substr(0, name.size() - std::strlen(part));
    return {};
  }
};

}  // namespace

std::vector<std::string> original_faults(const Architecture& architecture,
                                         const Checkpoint& checkpoint, const Checkpoint& original,
                                         bool rescaled) {
  const std::set<std::string> decoder = decoder_tensors(architecture);
  const Packed packed(checkpoint, decoder);
  std::vector<std::string> faults;
  const auto fail = [&](const std::string& fault) {
    faults.push_back(checkpoint.folder().string() + ": " + fault);
  };
  for (const std::string& name : original.names()) {
    const TensorInfo& theirs = original.info(name);
    const bool read = decoder.contains(name);  // by the decoder
    const bool tied_head = architecture.head.tied && name == architecture.head.name + ".weight";
    if (tied_head || (!read && is_recomputed(theirs)) || (read && packed.stands_for(theirs)))
      continue;
    if (!checkpoint.contains(name)) {
      fail(fmt::format("lacks tensor '{}' {} of the original", name, text_of(theirs)));
      continue;
    }
    const TensorInfo& ours = checkpoint.info(name);
    if (ours.shape != theirs.shape || (!read && ours.dtype != theirs.dtype)) {
      fail(fmt::format("tensor '{}' is changed: it is {}, and {} in the original", name,
                       text_of(ours), text_of(theirs)));
      continue;
    }
    if (read && rescaled && name.starts_with(architecture.layer_prefix)) continue;
    const bool comparable =
        ours.dtype == theirs.dtype || (is_float(ours.dtype) && is_float(theirs.dtype));
    if (comparable && !has_values_of(original, checkpoint, name))
      fail(fmt::format("tensor '{}' is changed: it has other values than in the original", name));
  }
  return faults;
}

}  // namespace qpipe
