// The triangular factor that GPTQ needs, without an inverse of H.
//
// H + λI = M Mᵀ with M upper triangular: reverse the index order, factor once (Cholesky), reverse again.
// N = M · diag(M)⁻¹ is unit upper triangular, and GPTQ's codes are  q_k = Q(w_k + Σ_{j<k} (w_j − q_j) N_jk)
// with the original w; the row's loss (w − q)(H + λI)(w − q)ᵀ is Σ_k M_kk² (v_k − q_k)², v_k the argument of Q.
// Equal to Cholesky → inverse → Cholesky of Frantar et al. 2023 (GPTQ), algorithm 1, for a quarter of the work.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// n ← N and pivot[0, k] ← M_kk of the permuted matrix A_ij = h[perm[i], perm[j]] (+ damp on the diagonal; a zero diagonal of h, a dead
// column, counts as 1). h [d, d] symmetric, perm [1, d] on the device, n [d, d] with zeros below the diagonal, pivot [1, d].
// h may lie in n's memory when perm is the identity.
// Returns false, n and pivot undefined, when A is not positive definite or not finite. Waits for the device.
// CPU: float64 inside. CUDA: float32, see kernels/cholesky_cuda.h; the same bits on every run.
bool factor(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<float> n, Matrix<float> pivot, Stream& stream);

// An upper bound of the device memory that factor() of a [d, d] matrix takes on CUDA beside h and n, while it runs.
std::int64_t factor_workspace_bytes(std::int64_t d);

namespace cuda {
decltype(qpipe::factor) factor;
}

}  // namespace qpipe
