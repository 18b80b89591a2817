#include "pipeline/model/passed_through.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "pipeline/model/model.h"
#include "pipeline/model/read_back.h"

namespace qpipe {

namespace {

constexpr std::array<std::string_view, 4> rotary_tables_and_mask_values = {
    ".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".masked_bias"};
constexpr std::array<std::string_view, 2> causal_masks = {".attn.bias", ".attention.bias"};

}  // namespace

std::set<std::string> decoder_tensors(const Architecture& architecture) {
  std::set<std::string> names{architecture.head.name + ".weight"};
  for (TensorInfo& tensor : expected_tensors(architecture, DType::f32))
    names.insert(std::move(tensor.name));
  return names;
}

bool is_recomputed(const TensorInfo& tensor) {
  const auto has_end = [&](std::string_view end) { return tensor.name.ends_with(end); };
  if (std::any_of(rotary_tables_and_mask_values.begin(), rotary_tables_and_mask_values.end(),
                  has_end))
    return true;
  return tensor.shape.size() != 1 &&  // a vector is a bias
         std::any_of(causal_masks.begin(), causal_masks.end(), has_end);
}

std::string linear_of(const std::string& name, const std::set<std::string>& decoder) {
  for (std::size_t dot = name.rfind('.'); dot != std::string::npos && dot > 0;
       dot = name.rfind('.', dot - 1)) {
    const std::string module = name.substr(0, dot);
    if (is_weight_or_part(std::string_view(name).substr(dot + 1)) &&
        decoder.contains(module + ".weight"))
      return module;
  }
  return {};
}

std::vector<std::string> passed_through(const std::set<std::string>& decoder,
                                        const Checkpoint& checkpoint) {
  const bool quantized = checkpoint.config().contains("quantization_config");
  std::vector<std::string> names;
  for (std::string& name : checkpoint.names())
    if (!decoder.contains(name) && !is_recomputed(checkpoint.info(name)) &&
        !(quantized && !linear_of(name, decoder).empty()))
      names.push_back(std::move(name));
  return names;
}

std::vector<std::string> passed_through(const Architecture& architecture,
                                        const Checkpoint& checkpoint) {
  return passed_through(decoder_tensors(architecture), checkpoint);
}

}  // namespace qpipe
