// The norm behind the state space of Mamba-2: over groups of columns, with a gate, in float32.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

struct GatedGroupNorm {
  std::int64_t groups = 1;  // of cols / groups columns side by side, each with a norm of its own
  float eps = 1e-6f;
  bool gate_first = true;
  bool operator==(const GatedGroupNorm&) const = default;
};

// y = n(x silu(z)) w with gate_first, else n(x) w silu(z), with n(v) = v / √(mean v² + ε) over each
// group.   x, z, y [tokens, cols] and weight [1, cols] of the compute type. y may be x or z;
// rounded once. A row's result depends on that row alone.
void gated_group_norm(ConstTensor x, ConstTensor z, ConstTensor weight, const GatedGroupNorm& norm,
                      Tensor y, Stream& stream);

namespace cuda {
decltype(qpipe::gated_group_norm) gated_group_norm;
}  // namespace cuda

}  // namespace qpipe
