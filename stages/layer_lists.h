// What layer.cpp and the mixers' files list a layer's parts with.
#pragma once

#include "stages/layer.h"

namespace qpipe {

using Linears = std::vector<LinearSpec>;

// Outputs of all of them, side by side.
std::int64_t outputs(const Linears& linears);

// The tensors of a linear, of a norm: a weight, its bias. index: of the linear in layer_linears().
void add_linear(const LinearSpec& linear, std::vector<TensorSpec>& tensors, std::size_t index = 0);
void add_tensors(const std::vector<NormTensors>& norms, std::vector<TensorSpec>& tensors);

void add_norm(const std::optional<NormSpec>& norm, std::vector<NormTensors>& norms);
void add_norm(const std::optional<HeadNorm>& head_norm, std::int64_t heads,
              std::vector<NormTensors>& norms);

// A step that runs the linears [first, first + count), all of them one group of its one panel.
Step make_step(Part part, int number, std::int64_t width, std::size_t first, std::size_t count);

}  // namespace qpipe
