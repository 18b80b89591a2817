// The weights that make a quantized model's linear come closest to what the original model computes
// there, rather than to what the linear would compute from the drifted input that it has.
//
// Of min E‖W x − Q x̃‖² over Q: with H = E x̃ x̃ᵀ + λI and C = E (x − x̃) x̃ᵀ, the loss is that of
// GPTQ around W* = W + W C H⁻¹, (W* − Q) H (W* − Q)ᵀ, plus what no Q changes (Li et al. 2025,
// GPTAQ). C is known from some samples only, and what is chance in it makes W* worse on other text.
// With H = M Mᵀ (kernels/factor.h), the columns of A = W C M⁻ᵀ have errors of one size, and
//   W* = W + A diag(α) M⁻¹,   α_k = max(0, 1 − Σ_r (a_rk − b_rk)² / Σ_r (a_rk + b_rk)²),
// where A = a + b are the parts of two halves of the samples: α_k is the least-squares factor of
// column k, told by how far the halves agree (kernels/half_agreement.h).
#pragma once

#include <vector>

#include "stages/cross_moments.h"
#include "stages/layer.h"

namespace qpipe {

// N and the pivots of a Hessian whose columns are in the order perm; dead columns count as 0.
struct SolvedOrder {
  Matrix<const float> n;            // [d, d]
  Matrix<const float> pivot;        // [1, d]
  Matrix<const std::int32_t> perm;  // [1, d] on the device
  Matrix<const std::uint8_t> dead;  // [1, d] on the device
};

struct OriginalTarget {
  Array<float> inverse;           // [d, d]: N⁻¹
  Array<float> factor;            // [1, d]: α_k / pivot_k², in the order of the columns
  Array<std::int32_t> positions;  // [1, d]: where in the order the checkpoint's columns are
  double agreement = 0.0;         // the mean of α
};

// α, from some evenly spaced rows of each of the weights: the same on every rank that has them.
OriginalTarget original_target(const CrossMoments& moments, const std::vector<ConstTensor>& weights,
                               const SolvedOrder& order, Stream& stream);

// w ← w + w C H⁻¹, shrunk.   w [rows, d] in the checkpoint's order, c [d, d] the sum of the halves.
// The result of a row does not depend on which other rows are in the call, as long as it has the
// same place among 32 (kernels/row_product.h).
void move_to_target(const OriginalTarget& target, Matrix<const float> c, const SolvedOrder& order,
                    Matrix<float> w, Stream& stream);

// Device memory of a target, and what each takes beside it while it runs.
std::int64_t target_bytes(std::int64_t d);
std::int64_t target_workspace_bytes(Backend backend,
                                    const std::vector<std::int64_t>& rows_of_weights,
                                    std::int64_t d);
std::int64_t move_workspace_bytes(Backend backend, std::int64_t rows, std::int64_t d);

}  // namespace qpipe
