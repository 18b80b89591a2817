// The triangular factor that GPTQ needs, without an inverse of H.
//
// H + λI = M Mᵀ with M upper triangular: reverse the index order, factor once (Cholesky), reverse
// again. N = M · diag(M)⁻¹ is unit upper triangular, and GPTQ's codes are  q_k = Q(w_k + Σ_{j<k}
// (w_j − q_j) N_jk) with the original w; the row's loss (w − q)(H + λI)(w − q)ᵀ is Σ_k M_kk² (v_k −
// q_k)², v_k the argument of Q. Equal to Cholesky → inverse → Cholesky of Frantar et al. 2023
// (GPTQ), algorithm 1, for a quarter of the work.
#pragma once

#include <functional>

#include "kernels/stream.h"

namespace qpipe {

// A larger matrix is factored by all ranks of a team together, on CUDA: 1-D block-cyclic, each
// panel of columns by its owner, who sends it to the others while all subtract the panel before
// (kernels/cholesky_cuda.h).
inline constexpr std::int64_t largest_factor_of_one_rank = 8192;

// The ranks that factor one matrix. All of them call factor() with the same arguments' values and
// end with the same n and pivot, which are those of a single rank, bit for bit.
struct FactorTeam {
  int rank = 0;
  int ranks = 1;
  // Rank `from`'s `data` to the others, in the stream's order: not the order of the stream that
  // factor() has, beside which it runs.
  std::function<void(void* data, std::size_t bytes, int from, Stream& stream)> broadcast;
  // Returns when the stream has done what is queued. Throws where a rank does not come.
  std::function<void(Stream& stream)> wait;
};

// n ← N and pivot[0, k] ← M_kk of the permuted matrix A_ij = h[perm[i], perm[j]] (+ damp on the
// diagonal; a zero diagonal of h, a dead column, counts as 1). h [d, d] symmetric, perm [1, d] on
// the device, n [d, d] with zeros below the diagonal, pivot [1, d]. h may lie in n's memory when
// perm is the identity. Returns false, n and pivot undefined, when A is not positive definite or
// not finite. Waits for the device. CPU: float64 inside. CUDA: float32, see
// kernels/cholesky_cuda.h; the same bits on every run. A team of several ranks shares the work of d
// > largest_factor_of_one_rank on CUDA; otherwise each rank does all of it.
bool factor(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<float> n,
            Matrix<float> pivot, const FactorTeam& team, Stream& stream);

inline bool factor(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp,
                   Matrix<float> n, Matrix<float> pivot, Stream& stream) {
  return factor(h, perm, damp, n, pivot, FactorTeam(), stream);
}

// An upper bound of the device memory that factor() of a [d, d] matrix takes on CUDA beside h and
// n, while it runs in a team.
std::int64_t factor_workspace_bytes(std::int64_t d, int ranks = 1);

namespace cuda {
bool factor(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<float> n,
            Matrix<float> pivot, const FactorTeam& team, Stream& stream);
}

}  // namespace qpipe
