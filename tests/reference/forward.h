// The forward-pass kernels in double precision, written from their contracts (kernels/*.h) one
// element at a time. Matrices are contiguous, row-major; an empty vector is an absent bias.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/activation.h"
#include "kernels/attention.h"

namespace qpipe::reference {

using Values = std::vector<float>;
using Exact = std::vector<double>;

// x Wᵀ + b.   x [tokens, in], weight [out, in], bias [out].
Exact linear(const Values& x, const Values& weight, const Values& bias, std::int64_t tokens,
             std::int64_t in, std::int64_t out);

// Row t of x [rows, d] is scaled by row t mod n of weight [n, d], or not at all where weight is
// empty; bias likewise.
Exact rms_norm(const Values& x, const Values& weight, std::int64_t rows, std::int64_t d, double eps,
               double offset);
Exact layer_norm(const Values& x, const Values& weight, const Values& bias, std::int64_t rows,
                 std::int64_t d, double eps, double offset);

double activation(Activation f, double x);
double xielu(double x, double alpha_p, double alpha_n, double beta, double eps);

// Rotates q and k of the whole matrix; the angle is rounded to float32, as the contract says.
Exact rope(const Values& qkv, const HeadLayout& layout, const Values& inverse_frequencies,
           double amplitude, bool interleaved, std::int64_t seqlen);

struct AttentionCase {
  HeadLayout layout;
  std::int64_t samples = 1;
  std::int64_t seqlen = 1;
  double scale = 1.0;
  std::int64_t window = 0;
  std::int64_t chunk = 0;
  double soft_cap = 0.0;
  Values key_bias;  // [heads, seqlen] or empty
  Values sinks;     // [heads] or empty
  double value_scale = 1.0;
  std::vector<std::uint32_t> selected;  // [tokens, ⌈seqlen / 32⌉] or empty
};

struct AttentionResult {
  Exact out;        // [tokens, heads · v_dim]
  Exact magnitude;  // Σ_j p_j |v_j|, same shape: what errors of p are multiplied by
  Exact score;  // [tokens, heads]: max_j (scale Σ|q||k| + |bias|), or |sink|: what rounding errors
                // of a score are relative to
};
AttentionResult attention(const Values& qkv, const AttentionCase& c);

// 0 where target = −1.
Exact cross_entropy(const Values& logits, const std::vector<std::int32_t>& target,
                    std::int64_t tokens, std::int64_t vocab);

}  // namespace qpipe::reference
