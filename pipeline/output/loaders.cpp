#include "pipeline/output/loaders.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "pipeline/plan/family_loaders.h"
#include "pipeline/plan/module_names.h"

namespace qpipe {

namespace {

using Json = nlohmann::json;

Loader yes(const char* name, const char* needs = "") { return {name, true, needs}; }
Loader no(const char* name, const char* why) { return {name, false, why}; }
Loader dequantized(const std::string& why) {
  return {"transformers", true, why + "; only with CompressedTensorsConfig(dequantize=True)", true};
}

bool mixed(const std::vector<int>& bits) {
  return std::adjacent_find(bits.begin(), bits.end(), std::not_equal_to<>()) != bits.end();
}

// Widths of groups that vLLM's Marlin kernels have; −1 is one group a row.
bool marlin_groups(const Json& quantization) {
  const Json group = quantization.value("group_size", Json());
  return group == -1 || group == 32 || group == 64 || group == 128;
}

bool is_true(const Json& object, const char* key) { return object.value(key, Json()) == true; }

std::vector<Loader> gptq_loaders(StoredFormat format, const Json& quantization,
                                 const QuantizedLinears& linears) {
  const std::vector<int>& bits = linears.bits;
  const bool symmetric = is_true(quantization, "sym");
  const bool grouped = quantization.value("group_size", Json()) != -1;
  const bool v1 = format == StoredFormat::gptq_v1;
  std::vector<Loader> loaders;
  if (mixed(bits))
    loaders.push_back(no("transformers", "ignores `dynamic`, and the linears have different bits"));
  else if (!linears.all)
    loaders.push_back(no("transformers", "ignores `dynamic`, and some linears are not quantized"));
  else
    loaders.push_back(yes("transformers", "needs optimum and gptqmodel"));
  if (std::any_of(bits.begin(), bits.end(), [](int b) { return b != 4 && b != 8; }))
    loaders.push_back(no("vLLM", "has 4 and 8 bits only"));
  else if (!symmetric)
    loaders.push_back(no("vLLM", "has symmetric grids only"));
  else if (is_true(quantization, "desc_act") && grouped)
    loaders.push_back(no("vLLM", "has no desc_act with groups"));
  else if (!marlin_groups(quantization))
    loaders.push_back(no("vLLM", "has group_size -1, 32, 64 and 128 only"));
  else
    loaders.push_back(yes("vLLM"));
  loaders.push_back(v1 && !symmetric
                        ? no("GPTQModel", "refuses an asymmetric grid in format gptq; use gptq_v2")
                        : yes("GPTQModel"));
  loaders.push_back(no("AutoAWQ", "loads awq only"));
  return loaders;
}

// transformers makes room for unpacked zeros when it loads codes as they are.
bool asymmetric_codes(const Json& quantization) {
  const Json groups = quantization.value("config_groups", Json());
  if (!groups.is_object()) return false;
  return std::any_of(groups.begin(), groups.end(), [](const Json& group) {
    const Json weights = group.is_object() ? group.value("weights", Json()) : Json();
    return weights.is_object() && weights.value("symmetric", Json()) == false;
  });
}

std::vector<Loader> loaders_of_format(StoredFormat format, const Json& quantization,
                                      const QuantizedLinears& linears) {
  const std::vector<int>& bits = linears.bits;
  const Loader no_gptqmodel = no("GPTQModel", "loads gptq and awq only");
  const Loader no_autoawq = no("AutoAWQ", "loads awq only");
  switch (format) {
    case StoredFormat::unquantized: return {};
    case StoredFormat::gptq_v1:
    case StoredFormat::gptq_v2: return gptq_loaders(format, quantization, linears);
    case StoredFormat::awq: {
      const bool zeros = is_true(quantization, "zero_point");
      return {yes("transformers", "needs gptqmodel"),
              zeros ? yes("vLLM", "compute capability 7.5 or more")
                    : no("vLLM", "needs zero_point = true"),
              yes("GPTQModel"),
              zeros ? yes("AutoAWQ") : no("AutoAWQ", "needs zero_point = true in version gemm")};
    }
    case StoredFormat::ct_integer:
      if (std::find(bits.begin(), bits.end(), 3) != bits.end())
        return {yes("transformers",
                    "needs compressed-tensors 0.20: older ones have another layout of 3 bits"),
                yes("vLLM"), no_gptqmodel, no_autoawq};
      [[fallthrough]];
    case StoredFormat::ct_float8:
    case StoredFormat::ct_nvfp4:
    case StoredFormat::ct_mxfp4:
      return {asymmetric_codes(quantization) ? dequantized("needs compressed-tensors 0.15")
                                             : yes("transformers", "needs compressed-tensors 0.15"),
              yes("vLLM"), no_gptqmodel, no_autoawq};
    case StoredFormat::bnb_four_bit:
    case StoredFormat::bnb_int8:
      return {yes("transformers", "needs bitsandbytes"),
              no("vLLM", "since 0.28 only with the plug-in vllm-bnb-plugin"), no_gptqmodel,
              no_autoawq};
    case StoredFormat::fp8:
    case StoredFormat::mxfp4: return {yes("transformers"), yes("vLLM"), no_gptqmodel, no_autoawq};
  }
  throw std::logic_error("loaders_of: " + name_of(format));
}

Format format_of(StoredFormat format) {
  switch (format) {
    case StoredFormat::gptq_v1: return Format::gptq;
    case StoredFormat::gptq_v2: return Format::gptq_v2;
    case StoredFormat::awq: return Format::awq;
    case StoredFormat::bnb_four_bit:
    case StoredFormat::bnb_int8: return Format::bitsandbytes;
    case StoredFormat::fp8: return Format::fp8;
    default: return Format::compressed_tensors;
  }
}

}  // namespace

std::vector<Loader> loaders_of(StoredFormat format, const Json& config,
                               const QuantizedLinears& linears) {
  std::vector<Loader> loaders =
      loaders_of_format(format, config.value("quantization_config", Json::object()), linears);
  for (const FamilyFault& fault : family_faults(format_of(format), config, linears.experts))
    for (Loader& loader : loaders) {
      if (loader.name != fault.program || !loader.loads || loader.dequantizes) continue;
      loader = fault.dequantized ? dequantized(fault.why) : Loader{fault.program, false, fault.why};
    }
  return loaders;
}

QuantizedLinears quantized_linears(const std::vector<LinearReport>& linears) {
  QuantizedLinears result;
  for (const LinearReport& linear : linears)
    if (linear.packed) {
      result.bits.push_back(linear.packed->bits);
      result.experts = result.experts || is_of_an_expert(linear.name);
    } else if (!linear.spec.kept) {
      result.all = false;
    }
  return result;
}

}  // namespace qpipe
