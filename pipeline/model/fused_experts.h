// Experts whose linears share a tensor of the file: gate and up of all experts in one, or a stack
// for each. A checkpoint presents them as the linears that they are, EXPERTS.E.gate_proj, up_proj
// and down_proj, so that nothing else knows of it. Layouts: ../shared/oracles/README.md, "Tensor
// layouts in the wild"; biases and MXFP4's blocks and scales alike.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/files/error.h"
#include "pipeline/model/safetensors.h"

namespace qpipe {

// A matrix or vector in a tensor of the file. Element (r, c) is the stored tensor's element
// first + r · row_stride + c · column_stride.
struct TensorSlice {
  std::string stored;
  TensorInfo info;  // as it is presented
  std::int64_t first = 0;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 1;
  bool transposed = false;  // a linear's weight as [in, out]

  bool contiguous() const { return column_stride == 1 && row_stride == info.cols(); }
};

struct ExpertSlices {
  std::vector<TensorSlice> slices;
  // Of stacks whose shape cannot be: what is to be thrown when somebody needs one of their linears.
  std::map<std::string, UserError> faults;
};

// What to present in place of which tensors. `where` goes into messages. hidden_size says which
// way the stacks lie; where both ways fit, the family does.
ExpertSlices slices_of_experts(const nlohmann::json& config,
                               const std::map<std::string, TensorInfo>& tensors,
                               const std::string& where);

}  // namespace qpipe
