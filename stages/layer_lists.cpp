#include "stages/layer_lists.h"

#include <algorithm>
#include <numeric>

namespace qpipe {

std::int64_t outputs(const Linears& linears) {
  std::int64_t width = 0;
  for (const LinearSpec& linear : linears) width += linear.out_features;
  return width;
}

void add_linear(const LinearSpec& l, std::vector<TensorSpec>& tensors, std::size_t index) {
  const auto shape = l.transposed ? std::vector{l.in_features, l.out_features}
                                  : std::vector{l.out_features, l.in_features};
  tensors.push_back({l.name + ".weight", shape, TensorRole::weight, index});
  if (l.bias)
    tensors.push_back({l.name + ".bias", {l.out_features}, TensorRole::linear_bias, index});
}

void add_norm(const std::optional<NormSpec>& norm, std::vector<NormTensors>& norms) {
  if (!norm) return;
  NormTensors& tensors = norms.emplace_back(NormTensors{norm->name, 1, norm->width, {}, {}});
  if (norm->weight) tensors.weights = {norm->name + ".weight"};
  if (norm->bias) tensors.biases = {norm->name + ".bias"};
}

void add_norm(const std::optional<HeadNorm>& head_norm, std::int64_t heads,
              std::vector<NormTensors>& norms) {
  if (!head_norm) return;
  const NormSpec& norm = head_norm->norm;
  add_norm(std::optional(norm), norms);
  NormTensors& tensors = norms.back();
  const bool rows = head_norm->layout == HeadNorm::Weight::per_head ||
                    head_norm->layout == HeadNorm::Weight::modules;
  if (rows) tensors.rows = heads;
  if (head_norm->layout != HeadNorm::Weight::modules) return;
  tensors.weights.clear();
  tensors.biases.clear();
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::string module = norm.name + ".norms." + std::to_string(h);
    if (norm.weight) tensors.weights.push_back(module + ".weight");
    if (norm.bias) tensors.biases.push_back(module + ".bias");
  }
}

void add_tensors(const std::vector<NormTensors>& norms, std::vector<TensorSpec>& tensors) {
  for (const NormTensors& norm : norms) {
    const std::size_t count = std::max(norm.weights.size(), norm.biases.size());
    std::vector<std::int64_t> shape{norm.width};
    if (count == 1 && norm.rows > 1) shape.insert(shape.begin(), norm.rows);
    for (std::size_t i = 0; i < count; ++i) {
      if (i < norm.weights.size()) tensors.push_back({norm.weights[i], shape, TensorRole::norm});
      if (i < norm.biases.size()) tensors.push_back({norm.biases[i], shape, TensorRole::norm});
    }
  }
}

Step make_step(Part part, int number, std::int64_t width, std::size_t first, std::size_t count) {
  Step step;
  step.part = part;
  step.number = number;
  step.width = width;
  step.panels = {{width, 1, false}};
  step.runs.resize(count);
  std::iota(step.runs.begin(), step.runs.end(), first);
  step.groups = {{0, width, step.runs}};
  return step;
}

}  // namespace qpipe
