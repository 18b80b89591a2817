#include "pipeline/commands/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/activation.h"
#include "kernels/pack.h"
#include "kernels/transpose.h"
#include "pipeline/commands/verify_original.h"
#include "pipeline/commands/verify_skipped.h"
#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/terminal.h"
#include "pipeline/files/user_output.h"
#include "pipeline/model/finite.h"
#include "pipeline/model/model.h"
#include "pipeline/model/passed_through.h"
#include "pipeline/output/output.h"
#include "stages/architecture.h"
#include "stages/layer.h"

namespace qpipe {

namespace fs = std::filesystem;

namespace {

using Json = nlohmann::json;
using Faults = std::vector<std::string>;

constexpr std::size_t most_faults = 100;  // of one kind

std::vector<unsigned char> bytes_of(const Checkpoint& checkpoint, const std::string& name) {
  std::vector<unsigned char> bytes(static_cast<std::size_t>(checkpoint.info(name).bytes()));
  checkpoint.read(name, bytes.data());
  return bytes;
}

// --- config.json

bool is_gptq(StoredFormat format) {
  return format == StoredFormat::gptq_v1 || format == StoredFormat::gptq_v2;
}

bool is_flag(const Json& x) { return x.is_boolean(); }
bool is_text(const Json& x) { return x.is_string(); }
bool is_array(const Json& x) { return x.is_array(); }
bool is_object(const Json& x) { return x.is_object(); }
bool is_bits(const Json& x) { return x == 2 || x == 3 || x == 4 || x == 8; }
bool is_group(const Json& x) { return x.is_number_integer() && (x == -1 || x > 0); }

void need(const Json& object, const std::string& path, const char* key, bool (*fits)(const Json&),
          const char* must, Faults& faults) {
  const auto found = object.find(key);
  if (found == object.end())
    faults.push_back(fmt::format("{}.{} is missing: it must be {}", path, key, must));
  else if (!fits(*found))
    faults.push_back(fmt::format("{}.{} = {}: it must be {}", path, key, found->dump(), must));
}

void need_in_groups(const Json& groups, const std::string& path, Faults& faults) {
  for (const auto& [name, one] : groups.items()) {
    const std::string group = fmt::format("{}.{}", path, name);
    need(one, group, "targets", is_array, "an array of names", faults);
    need(one, group, "weights", is_object, "an object", faults);
    const auto weights = one.find("weights");
    if (weights == one.end() || !weights->is_object()) continue;
    need(*weights, group + ".weights", "num_bits", is_bits, "2, 3, 4 or 8", faults);
    need(*weights, group + ".weights", "type", is_text, "int or float", faults);
    need(*weights, group + ".weights", "symmetric", is_flag, "true or false", faults);
    need(*weights, group + ".weights", "strategy", is_text,
         "channel, group, tensor or tensor_group", faults);
  }
}

// The keys that loaders need, of the right kind (formats.md, Config of each section).
Faults config_faults(StoredFormat format, const Json& quantization, const std::string& where) {
  Faults faults;
  const std::string path = where + ": quantization_config";
  const auto key = [&](const char* name, bool (*fits)(const Json&), const char* must) {
    need(quantization, path, name, fits, must, faults);
  };
  switch (format) {
    case StoredFormat::unquantized:
      faults.push_back(where + ": quantization_config is missing: the folder is not quantized");
      break;
    case StoredFormat::gptq_v1:
    case StoredFormat::gptq_v2:
      key("bits", is_bits, "2, 3, 4 or 8");
      key("group_size", is_group, "-1 or positive");
      key("desc_act", is_flag, "true or false");
      key("sym", is_flag, "true or false");
      key("checkpoint_format", is_text, "gptq or gptq_v2");
      break;
    case StoredFormat::awq:
      key("version", is_text, "gemm");
      key("bits", is_bits, "4");
      key("group_size", is_group, "-1 or positive");
      key("zero_point", is_flag, "true or false");
      break;
    case StoredFormat::ct_integer:
    case StoredFormat::ct_float8:
    case StoredFormat::ct_nvfp4:
    case StoredFormat::ct_mxfp4: {
      key("quantization_status", is_text, "compressed");
      key("ignore", is_array, "an array of names");
      key(
          "config_groups", [](const Json& x) { return x.is_object() && !x.empty(); },
          "an object of one group or more");
      const Json groups = quantization.value("config_groups", Json::object());
      if (groups.is_object()) need_in_groups(groups, path + ".config_groups", faults);
      break;
    }
    case StoredFormat::bnb_four_bit:
      key(
          "bnb_4bit_quant_type", [](const Json& x) { return x == "nf4" || x == "fp4"; },
          "nf4 or fp4");
      key("bnb_4bit_use_double_quant", is_flag, "true or false");
      key("bnb_4bit_compute_dtype", is_text, "the name of a dtype");
      key("bnb_4bit_quant_storage", is_text, "the name of a dtype");
      [[fallthrough]];
    case StoredFormat::bnb_int8: {
      if (quantization.contains("llm_int8_threshold") || format == StoredFormat::bnb_int8)
        key(
            "llm_int8_threshold", [](const Json& x) { return x.is_number_float(); },
            "a float, 6.0");
      const auto skip = quantization.find("llm_int8_skip_modules");
      if (skip != quantization.end() && skip->is_array() &&
          std::find(skip->begin(), skip->end(), "lm_head") == skip->end())
        faults.push_back(where +
                         ": quantization_config.llm_int8_skip_modules does not name lm_head: a "
                         "list replaces the loader's own choice");
      break;
    }
    case StoredFormat::fp8:
      key("activation_scheme", is_text, "dynamic");
      key(
          "modules_to_not_convert",
          [](const Json& x) {
            return x.is_array() && std::find(x.begin(), x.end(), "lm_head") != x.end();
          },
          "an array that names lm_head");
      break;
    case StoredFormat::mxfp4: break;  // its own loader knows what is packed
  }
  return faults;
}

const char* torch_name(DType dtype) {
  switch (dtype) {
    case DType::u8: return "uint8";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
    case DType::f32: return "float32";
    default: return "?";
  }
}

// differs(what, stored, configured)
template <class Differs>
void compare_four_bit(const Json& quantization, const Checkpoint& checkpoint,
                      const std::string& linear, const Differs& differs) {
  const std::string weight = linear + ".weight";
  const char* kind = checkpoint.contains(weight + ".quant_state.bitsandbytes__nf4") ? "nf4" : "fp4";
  const Json kind_said = quantization.value("bnb_4bit_quant_type", Json());
  if (kind_said != kind) differs("the type", kind, kind_said);
  const Json storage = quantization.value("bnb_4bit_quant_storage", Json());
  if (storage != torch_name(checkpoint.info(weight).dtype))
    differs("storage", torch_name(checkpoint.info(weight).dtype), storage);
  const bool nested = checkpoint.contains(weight + ".nested_absmax");
  if (quantization.value("bnb_4bit_use_double_quant", Json()) != nested)
    differs("double quantization:", nested ? "yes" : "no",
            quantization.value("bnb_4bit_use_double_quant", Json()));
}

// One linear against what quantization_config says of all.
Faults linear_faults(StoredFormat format, const Json& quantization, const SkipRules& rules,
                     const Checkpoint& checkpoint, const LinearReport& linear,
                     std::int64_t in_features) {
  Faults faults;
  const auto differs = [&](const std::string& what, const std::string& stored,
                           const Json& configured) {
    faults.push_back(fmt::format("{}: linear '{}' has {} {}, but quantization_config says {}",
                                 checkpoint.folder().string(), linear.name, what, stored,
                                 configured.dump()));
  };
  const bool skipped = rules.skip(linear.name);
  if (!linear.packed && !skipped)
    faults.push_back(
        fmt::format("{}: linear '{}' is not packed, but quantization_config does not say so: "
                    "loaders look for its parts",
                    checkpoint.folder().string(), linear.name));
  if (!linear.packed) return faults;
  if (skipped)
    faults.push_back(
        fmt::format("{}: linear '{}' is packed, but quantization_config says that it is not",
                    checkpoint.folder().string(), linear.name));

  const PackedLinear& packed = *linear.packed;
  const auto compare = [&](const Json& settings, const char* bits_key) {
    const Json bits = settings.value(bits_key, Json());
    if (bits.is_number_integer() && bits != packed.bits)
      differs("bits", std::to_string(packed.bits), bits);
    const Json group = settings.value("group_size", Json());
    if (group.is_number_integer() &&
        group > 0) {  // ⌈in/g⌉ groups; the width follows from their number
      const auto groups = [&](std::int64_t size) { return (in_features + size - 1) / size; };
      if (groups(group.get<std::int64_t>()) != groups(packed.group_size))
        differs("groups of", std::to_string(packed.group_size), group);
    } else if ((group == -1 || group.is_null()) && packed.group_size != in_features) {
      differs("groups of", std::to_string(packed.group_size), group);
    }
  };
  switch (format) {
    case StoredFormat::unquantized:
    case StoredFormat::ct_float8:
    case StoredFormat::ct_nvfp4:
    case StoredFormat::ct_mxfp4:
    case StoredFormat::bnb_int8:
    case StoredFormat::fp8:
    case StoredFormat::mxfp4: break;  // one layout only
    case StoredFormat::gptq_v1:
    case StoredFormat::gptq_v2: {
      const Json dynamic = quantization.value("dynamic", Json());
      if (!dynamic.is_object() || dynamic.empty()) compare(quantization, "bits");
      break;
    }
    case StoredFormat::awq: compare(quantization, "bits"); break;
    case StoredFormat::ct_integer: {
      const Json groups = quantization.value("config_groups", Json());
      if (!groups.is_object() || groups.size() != 1)
        break;  // which group a linear belongs to is the loader's to match
      const Json weights =
          groups.begin()->is_object() ? groups.begin()->value("weights", Json()) : Json();
      if (!weights.is_object()) break;
      compare(weights, "num_bits");
      const Json symmetric = weights.value("symmetric", Json());
      if (symmetric == packed.zeros)
        differs("zero points:", packed.zeros ? "stored" : "none", Json{{"symmetric", symmetric}});
      break;
    }
    case StoredFormat::bnb_four_bit:
      compare_four_bit(quantization, checkpoint, linear.name, differs);
      break;
  }
  return faults;
}

// --- files

Faults file_faults(const Checkpoint& checkpoint) {
  Faults faults;
  const fs::path& folder = checkpoint.folder();
  const fs::path index_path = folder / "model.safetensors.index.json";
  std::set<std::string> shards{"model.safetensors"};
  if (fs::exists(index_path)) {
    const Json index =
        read_json_object(index_path);  // weight_map has been checked with the checkpoint
    shards.clear();
    const Json& map = index.at("weight_map");
    for (const Json& shard : map) shards.insert(shard.get<std::string>());
    for (const std::string& name : checkpoint.names())
      if (!map.contains(name) && faults.size() < most_faults)
        faults.push_back(fmt::format("{}: does not name the tensor '{}', which a shard holds",
                                     index_path.string(), name));
    const auto metadata = index.find("metadata");
    if (metadata == index.end() || !metadata->is_object() || !metadata->contains("total_size"))
      faults.push_back(index_path.string() + ": metadata.total_size is missing");
    else if (metadata->at("total_size") != checkpoint.total_bytes())
      faults.push_back(fmt::format("{}: metadata.total_size = {}, but the tensors have {} bytes",
                                   index_path.string(), metadata->at("total_size").dump(),
                                   checkpoint.total_bytes()));
  }
  const bool one_set = !fs::exists(folder / "model.safetensors") &&
                       !fs::exists(index_path);  // shards without an index
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!one_set && name.starts_with("model") && name.ends_with(".safetensors") &&
        shards.count(name) == 0)
      faults.push_back(
          fmt::format("{}: shard {} is stale: the checkpoint does not use it; remove it",
                      folder.string(), in_quotes(name)));
  }

  const fs::path settings = folder / "quantize_config.json";
  if (fs::exists(settings)) {
    const Json other = read_json_object(settings);
    const Json& ours = checkpoint.config().at("quantization_config");
    if (other != ours) {
      std::string keys;
      for (const Json* object : {&ours, &other})
        for (const auto& [key, value] : object->items()) {
          const bool differs =
              !ours.contains(key) || !other.contains(key) || ours[key] != other[key];
          if (differs && keys.find("'" + key + "'") == std::string::npos)
            keys += (keys.empty() ? "'" : ", '") + key + "'";
        }
      faults.push_back(
          fmt::format("{}: differs from quantization_config of config.json in {}; GPTQModel reads "
                      "this one, others that one",
                      settings.string(), keys));
    }
  }
  return faults;
}

// --- contents

// What passes through may hold anything: a mask has infinities.
Faults finite_faults(StoredFormat format, const Architecture& architecture,
                     const Checkpoint& checkpoint) {
  Faults faults;
  const std::vector<std::string> passed = passed_through(architecture, checkpoint);
  for (const std::string& name : checkpoint.names()) {
    if (std::binary_search(passed.begin(), passed.end(), name)) continue;
    const DType type = number_type(format, checkpoint, checkpoint.info(name));
    if (type == DType::u8) continue;
    const auto bytes = bytes_of(checkpoint, name);
    const std::optional<std::int64_t> first =
        first_not_finite(type, bytes.data(), static_cast<std::int64_t>(bytes.size()));
    if (first && faults.size() < most_faults)
      faults.push_back(
          fmt::format("{}: tensor '{}' has an element that is not finite (the first is number {})",
                      checkpoint.folder().string(), name, *first));
  }
  return faults;
}

Faults zero_faults(StoredFormat format, const Json& quantization, const Checkpoint& checkpoint,
                   const LinearReport& linear, Stream& stream) {
  if (!is_gptq(format) || !linear.packed) return {};
  const std::string name = linear.name + ".qzeros";
  const TensorInfo& info = checkpoint.info(name);
  const int bits = linear.packed->bits;
  const auto bytes = bytes_of(checkpoint, name);
  Array<std::uint8_t> zero(info.cols() * 32 / bits, info.rows(), stream);
  unpack_zeros({reinterpret_cast<const std::uint32_t*>(bytes.data()), info.rows(), info.cols()},
               bits, format == StoredFormat::gptq_v1 ? -1 : 0, zero, stream);
  const std::uint8_t* begin = zero.view.data;
  const std::uint8_t* end = begin + zero.view.size();
  Faults faults;
  if (format == StoredFormat::gptq_v1 && std::find(begin, end, 0) != end)
    faults.push_back(
        fmt::format("{}: tensor '{}' has a zero point of 0, stored as -1: loaders disagree about "
                    "it; store gptq_v2",
                    checkpoint.folder().string(), name));
  const int middle = 1 << (bits - 1);
  if (quantization.value("sym", Json()) == true &&
      std::any_of(begin, end, [&](std::uint8_t z) { return z != middle; }))
    faults.push_back(fmt::format(
        "{}: tensor '{}' has zero points other than {}, but sym is true: vLLM ignores them",
        checkpoint.folder().string(), name, middle));
  return faults;
}

// Linears that vLLM runs as one.
std::vector<std::vector<std::string>> fused_linears(const Architecture& architecture,
                                                    std::int64_t layer) {
  std::vector<std::vector<std::string>> fused;
  const LayerSpec& spec = architecture.layer(layer);
  const auto add = [&](const std::vector<LinearSpec>& linears) {
    if (linears.size() < 2) return;
    fused.emplace_back();
    for (const LinearSpec& linear : linears)
      fused.back().push_back(layer_prefix(architecture, layer) + linear.name);
  };
  if (const auto* a = std::get_if<Attention>(&spec.mixer)) add(a->qkv);
  if (const auto* a = std::get_if<AttentionBesideMamba2>(&spec.mixer)) add(a->attention.qkv);
  if (const auto* a = std::get_if<LatentAttention>(&spec.mixer); a != nullptr && a->q_a)
    add({*a->q_a, a->kv_a});
  if (const auto* d = std::get_if<DeltaNet>(&spec.mixer)) {
    std::vector<LinearSpec> quantized;
    for (const LinearSpec& linear : d->in)
      if (!linear.kept) quantized.push_back(linear);
    add(quantized);
  }
  if (const auto* m = std::get_if<Mlp>(&spec.mlp)) add(m->in);
  return fused;
}

std::string kind_of(const LinearReport& linear) {
  if (!linear.packed) return "unpacked";
  return fmt::format("{} bits in groups of {}{}", linear.packed->bits, linear.packed->group_size,
                     linear.packed->zeros ? " with zeros" : "");
}

Faults fused_faults(StoredFormat format, const Architecture& architecture,
                    const Checkpoint& checkpoint,
                    const std::map<std::string, const LinearReport*>& linears) {
  Faults faults;
  for (std::int64_t layer = 0; layer < architecture.layers; ++layer)
    for (const std::vector<std::string>& group : fused_linears(architecture, layer)) {
      if (!std::all_of(group.begin(), group.end(),
                       [&](const std::string& name) { return linears.count(name) != 0; }))
        continue;
      const LinearReport& first = *linears.at(group.front());
      for (const std::string& name : group) {
        const LinearReport& linear = *linears.at(name);
        if (kind_of(linear) != kind_of(first)) {
          faults.push_back(fmt::format(
              "{}: linear '{}' is {}, but '{}' is {}: vLLM runs them as one",
              checkpoint.folder().string(), name, kind_of(linear), group.front(), kind_of(first)));
        } else if (format == StoredFormat::ct_nvfp4 && linear.packed &&
                   bytes_of(checkpoint, name + ".weight_global_scale") !=
                       bytes_of(checkpoint, group.front() + ".weight_global_scale")) {
          faults.push_back(
              fmt::format("{}: tensor '{}.weight_global_scale' differs from that of '{}': vLLM "
                          "takes the larger for both",
                          checkpoint.folder().string(), name, group.front()));
        }
      }
    }
  return faults;
}

// --- weights

Array<float> as_floats(const Checkpoint& checkpoint, const std::string& name, Stream& stream) {
  const auto bytes = bytes_of(checkpoint, name);
  const ConstTensor stored = view_of(checkpoint.info(name), bytes.data());
  Array<float> values(stored.rows, stored.cols, stream);
  convert(stored, values.view, stream);
  return values;
}

double relative_error(Matrix<const float> approximate, Matrix<const float> exact) {
  double difference = 0.0;
  double norm = 0.0;
  for (std::int64_t i = 0; i < exact.size(); ++i) {
    difference += std::pow(double{approximate.data[i]} - double{exact.data[i]}, 2);
    norm += std::pow(double{exact.data[i]}, 2);
  }
  return norm > 0.0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

Array<float> read_linear(StoredFormat format, const Checkpoint& checkpoint,
                         const std::string& module, const LinearSpec& spec,
                         const PackedLinear& packed, Stream& stream) {
  std::vector<Buffer> memory;
  PackedParts parts;
  for (const std::string& name : packed.names) {
    const auto bytes = bytes_of(checkpoint, name);
    memory.emplace_back(bytes.size(), stream);
    copy_to_device(memory.back().data(), bytes.data(), bytes.size(), stream);
    parts[name.substr(module.size())] = view_of(checkpoint.info(name), memory.back().data());
  }
  Array<float> weight(spec.out_features, spec.in_features, stream);
  read_back(format, module, parts, weight.view, stream);
  return weight;
}

// AWQ moves scales from a norm into the linears that read it, so that the norms tell: the weights
// are then those of another, equal model.
std::optional<std::string> rescaled_norm(const Architecture& architecture,
                                         const Checkpoint& checkpoint, const Checkpoint& original,
                                         Stream& stream) {
  constexpr double most_rounding = 0.01;  // bfloat16 rounds by 2^-9
  for (std::int64_t layer = 0; layer < architecture.layers; ++layer)
    for (const auto& norm :
         {architecture.layer(layer).mixer_norm, architecture.layer(layer).mlp_norm}) {
      if (!norm || !norm->weight) continue;
      std::string name = layer_prefix(architecture, layer) + norm->name + ".weight";
      if (!original.contains(name) || original.info(name).shape != checkpoint.info(name).shape)
        continue;
      if (relative_error(as_floats(checkpoint, name, stream).view,
                         as_floats(original, name, stream).view) > most_rounding)
        return name;
    }
  return std::nullopt;
}

void measure_weights(const Checkpoint& original, const Architecture& architecture,
                     const Checkpoint& checkpoint, Verification& result, Stream& stream) {
  if (const auto norm = rescaled_norm(architecture, checkpoint, original, stream)) {
    result.notes.push_back(
        fmt::format("'{}' differs from the original: scales have moved between weights (as AWQ "
                    "does), so that errors "
                    "of single weights say nothing and are left out; compare perplexities",
                    *norm));
    return;
  }
  for (LinearReport& linear : result.linears) {
    const LinearSpec& spec = linear.spec;
    if (!linear.packed) continue;
    const std::string name = linear.name + ".weight";
    if (!original.contains(name) ||
        original.info(name).shape != (spec.transposed
                                          ? std::vector{spec.in_features, spec.out_features}
                                          : std::vector{spec.out_features, spec.in_features}))
      throw UserError(
          ExitCode::data,
          fmt::format(
              "{}: has no tensor '{}' [{}, {}]; --original must be the model that was quantized",
              original.folder().string(), name, spec.out_features, spec.in_features));
    const Array<float> weight =
        read_linear(result.format, checkpoint, linear.name, spec, *linear.packed, stream);
    Array<float> exact = as_floats(original, name, stream);
    if (spec.transposed) {
      Array<float> turned(spec.out_features, spec.in_features, stream);
      transpose(exact.view, turned.view, stream);
      exact = std::move(turned);
    }
    linear.relative_error = relative_error(weight.view, exact.view);
  }
}

void append(Faults& faults, const Faults& more) {
  faults.insert(faults.end(), more.begin(), more.end());
}

// complete: all tensors are in order.
void compare_with_original(const fs::path& folder, const Architecture& architecture,
                           const Checkpoint& checkpoint, bool complete, Verification& result,
                           Stream& stream) {
  const Checkpoint original(folder);
  const std::string where = (folder / "config.json").string();
  if (read_stored_format(original.config(), where) != StoredFormat::unquantized)
    throw UserError(
        ExitCode::data,
        where + ": has a quantization_config; --original must be the unquantized model");
  check_tensors(read_architecture(original), original);
  bool rescaled = true;  // for all that is known of an incomplete one
  if (complete) {
    measure_weights(original, architecture, checkpoint, result, stream);
    rescaled = rescaled_norm(architecture, checkpoint, original, stream).has_value();
  } else {
    result.notes.emplace_back("weight errors are left out until all tensors are in order");
  }
  append(result.faults, original_faults(architecture, checkpoint, original, rescaled));
}

}  // namespace

Verification verify_checkpoint(const fs::path& folder, const fs::path& original) {
  Verification result;
  std::optional<Checkpoint> opened;
  try {
    opened.emplace(folder);
  } catch (const UserError& error) {
    result.faults.emplace_back(error.what());
    return result;
  }
  const Checkpoint& checkpoint = *opened;
  const std::string where = (folder / "config.json").string();
  const Architecture architecture = read_architecture(checkpoint);
  result.format = read_stored_format(checkpoint.config(), where);
  const Json quantization = checkpoint.config().value("quantization_config", Json::object());
  append(result.faults, config_faults(result.format, quantization, where));
  if (result.format == StoredFormat::unquantized) return result;
  const SkipRules rules(result.format, quantization);
  append(result.faults, rules.faults(where));
  append(result.faults, file_faults(checkpoint));
  const Faults of_tensors = tensor_faults(architecture, checkpoint, most_faults);
  append(result.faults, of_tensors);
  append(result.faults, finite_faults(result.format, architecture, checkpoint));

  // Linears whose tensors are in order; the others have their fault above.
  Stream stream(Backend::cpu, 0);
  std::map<std::string, const LinearReport*> by_name;
  std::int64_t bytes = 0;
  std::int64_t weights = 0;
  bool complete = true;
  for (std::int64_t layer = 0; layer < architecture.layers; ++layer)
    for (const LinearSpec& spec : layer_linears(architecture.layer(layer))) {
      LinearReport linear;
      linear.spec = spec;
      linear.name = layer_prefix(architecture, layer) + spec.name;
      std::vector<std::string> names{linear.name + ".weight"};
      try {
        if (is_packed(checkpoint, linear.name)) {
          linear.packed = check_packed_linear(result.format, checkpoint, linear.name,
                                              spec.out_features, spec.in_features);
          names = linear.packed->names;
        }
        std::int64_t linear_bytes = 0;
        for (const std::string& name : names) linear_bytes += checkpoint.info(name).bytes();
        const std::int64_t size = spec.out_features * spec.in_features;
        linear.bits_per_weight =
            8.0 * static_cast<double>(linear_bytes) / static_cast<double>(size);
        bytes += linear_bytes;
        weights += size;
      } catch (const UserError&) {
        complete = false;
        continue;
      }
      append(result.faults, linear_faults(result.format, quantization, rules, checkpoint, linear,
                                          spec.in_features));
      append(result.faults, zero_faults(result.format, quantization, checkpoint, linear, stream));
      result.linears.push_back(std::move(linear));
    }
  for (const LinearReport& linear : result.linears) by_name[linear.name] = &linear;
  append(result.faults, fused_faults(result.format, architecture, checkpoint, by_name));
  if (std::none_of(result.linears.begin(), result.linears.end(),
                   [](const LinearReport& linear) { return linear.packed.has_value(); }))
    result.faults.push_back(folder.string() +
                            ": no linear is packed, but config.json has a quantization_config");
  if (weights > 0)
    result.bits_per_weight = 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);

  for (const auto& [name, fault] : checkpoint.faults())
    if (std::find(of_tensors.begin(), of_tensors.end(), fault.what()) == of_tensors.end() &&
        result.notes.size() < most_faults)
      result.notes.push_back(fmt::format("'{}', which nobody needs: {}", name, fault.what()));
  const std::string head = architecture.head.name + ".weight";
  if (architecture.head.tied && checkpoint.contains(head))
    result.notes.push_back("tie_word_embeddings is true, and '" + head +
                           "' is stored all the same; it can be left out");
  if (!original.empty())
    compare_with_original(original, architecture, checkpoint, complete && of_tensors.empty(),
                          result, stream);
  result.loaders =
      loaders_of(result.format, checkpoint.config(), quantized_linears(result.linears));
  return result;
}

namespace {

// NaN is the worst of all.
const LinearReport* worst_of(const Verification& result) {
  const LinearReport* worst = nullptr;
  double largest = -1.0;
  for (const LinearReport& linear : result.linears) {
    if (!linear.relative_error) continue;
    const double error = std::isnan(*linear.relative_error) ? HUGE_VAL : *linear.relative_error;
    if (error > largest) {
      largest = error;
      worst = &linear;
    }
  }
  return worst;
}

Json as_json(const Verification& result) {
  Json linears = Json::array();
  for (const LinearReport& linear : result.linears) {
    Json one{{"name", linear.name},
             {"packed", linear.packed.has_value()},
             {"bits_per_weight", linear.bits_per_weight}};
    if (linear.packed) {
      one["bits"] = linear.packed->bits;
      one["group_size"] = linear.packed->group_size;
      one["zeros"] = linear.packed->zeros;
    }
    if (linear.relative_error) one["relative_error"] = *linear.relative_error;
    linears.push_back(one);
  }
  Json loaders = Json::array();
  for (const Loader& loader : result.loaders)
    loaders.push_back({{"name", loader.name}, {"loads", loader.loads}, {"why", loader.why}});
  Json json{{"format", name_of(result.format)},
            {"faults", result.faults},
            {"notes", result.notes},
            {"linears", linears},
            {"loaders", loaders},
            {"bits_per_weight", result.bits_per_weight}};
  if (const LinearReport* worst = worst_of(result))
    json["worst"] = {{"name", worst->name}, {"relative_error", *worst->relative_error}};
  return json;
}

}  // namespace

int run_verify(const VerifyRequest& request) {
  const Verification result = verify_checkpoint(request.folder, request.original);
  if (!request.json.empty()) write_user_output(request.json, to_json_text(as_json(result)));

  const auto packed = std::count_if(result.linears.begin(), result.linears.end(),
                                    [](const auto& linear) { return linear.packed.has_value(); });
  print_result("{}: {}, {} of {} linears packed, {:.3f} bits per weight\n", request.folder.string(),
               name_of(result.format), packed, result.linears.size(), result.bits_per_weight);
  for (const LinearReport& linear : result.linears) {
    const std::string error =
        linear.relative_error ? fmt::format(", error {:.5f}", *linear.relative_error) : "";
    print_result("  {}: {}, {:.3f} bits per weight{}\n", linear.name, kind_of(linear),
                 linear.bits_per_weight, error);
  }
  if (const LinearReport* worst = worst_of(result))
    print_result("largest error |W - Q| / |W|: {:.5f}, {}\n", *worst->relative_error, worst->name);
  for (const std::string& note : result.notes) print_result("note: {}\n", printable(note));
  for (const Loader& loader : result.loaders)
    print_result("{} {}{}\n", loader.name, loader.loads ? "loads it" : "does not load it",
                 loader.why.empty() ? "" : ": " + loader.why);
  finish_results();
  for (const std::string& fault : result.faults) tell("qpipe: fault: " + printable(fault) + "\n");
  print_result("{}\n", result.faults.empty() ? "no faults"
                                             : fmt::format("{} fault(s)", result.faults.size()));
  return static_cast<int>(result.faults.empty() ? ExitCode::ok : ExitCode::data);
}

}  // namespace qpipe
