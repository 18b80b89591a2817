// The state space of Mamba-2 (Dao and Gu 2024), on a block of whole sequences.
#pragma once

#include <limits>

#include "kernels/stream.h"

namespace qpipe {

// Columns of x | B | C side by side: x of each head, then B and C of each group. Neighbouring heads
// share a group.
struct StateSpaceLayout {
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t groups = 1;  // divides heads
  std::int64_t state = 0;

  std::int64_t inner() const { return heads * head_dim; }
  std::int64_t b_begin() const { return inner(); }
  std::int64_t c_begin() const { return inner() + groups * state; }
  std::int64_t width() const { return inner() + 2 * groups * state; }
  bool operator==(const StateSpaceLayout&) const = default;
};

struct StateSpaceParameters {
  Matrix<const float> a_log;    // [1, heads]: A = −exp(a_log)
  Matrix<const float> dt_bias;  // [1, heads]
  Matrix<const float> d;        // [1, heads]
  float shortest = 0.0f;        // time step
  float longest = std::numeric_limits<float>::infinity();
};

// For each head, with S_0 = 0 in front of each sequence:
//   Δ_t = clamp(softplus(dt_t + dt_bias), shortest, longest)
//   S_t = exp(Δ_t A) S_{t−1} + Δ_t x_t B_tᵀ   [head_dim, state]
//   y_t = S_t C_t + D x_t
// xbc [tokens, layout.width()], dt [tokens, heads], y [tokens, layout.inner()] of the compute type;
// tokens a multiple of seqlen. y does not overlap the others. S is float32. The CPU takes one token
// after the other. CUDA takes chunks of tokens, with products of bfloat16 summed in float32: within
// a chunk y = (C Bᵀ ∘ decay) Δx + decay C S, decays exp(a_t − a_s) of sums a = Σ Δ A from the
// chunk's beginning; what a sequence gets does not depend on the others. Throws where the state is
// wider than 256.
void state_space(ConstTensor xbc, ConstTensor dt, const StateSpaceLayout& layout,
                 const StateSpaceParameters& parameters, std::int64_t seqlen, Tensor y,
                 Stream& stream);

namespace cuda {
decltype(qpipe::state_space) state_space;
}  // namespace cuda

}  // namespace qpipe
