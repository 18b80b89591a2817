// The gated delta rule: linear attention whose state is a map from keys to values that each token
// decays and corrects (Yang et al. 2024, "Gated Delta Networks"; Kimi Linear has a decay for each
// channel of the key).
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// Heads of q and k are shared by value_heads / key_heads neighbouring heads of v.
struct DeltaHeads {
  std::int64_t key_heads = 0;
  std::int64_t value_heads = 0;
  std::int64_t key_dim = 0;
  std::int64_t value_dim = 0;
  bool channel_decay = false;  // a decay for each channel of k; else one a head

  std::int64_t keys() const { return key_heads * key_dim; }
  std::int64_t values() const { return value_heads * value_dim; }
  std::int64_t decays() const { return value_heads * (channel_decay ? key_dim : 1); }
  bool operator==(const DeltaHeads&) const = default;
};

// For each head of v and each run of seqlen rows, with S = 0 in front of its first:
//   S ← diag(e^{g_t}) S,   S ← S + β_t k̂_t (v_t − Sᵀ k̂_t)ᵀ,   out_t = Sᵀ q̂_t / √key_dim,
// q̂ = q / √(Σ q² + 1e-6) of its head, k̂ alike; S [key_dim, value_dim] in float32.
// q, k [tokens, key_heads · key_dim], v, out [tokens, value_heads · value_dim] of the compute type,
// out not the memory of another; g [tokens, decays()] ≤ 0 and beta [tokens, value_heads] in
// float32. tokens is a multiple of seqlen.
// CUDA: chunks of 64 tokens, products in bf16 with float32 sums, what the state takes part in split
// in two; key_dim ≤ 256, key_dim and value_dim multiples of 8, as the strides. scratch: any memory
// of the compute type; with delta_rule_scratch() elements a token all is done at once, with less in
// turns, with the same result. A head of a sequence that doesn't fit takes memory of its own.
void delta_rule(ConstTensor q, ConstTensor k, ConstTensor v, Matrix<const float> g,
                Matrix<const float> beta, const DeltaHeads& heads, std::int64_t seqlen, Tensor out,
                Tensor scratch, Stream& stream);
std::int64_t delta_rule_scratch(const DeltaHeads& heads);

namespace cuda {
decltype(qpipe::delta_rule) delta_rule;
}  // namespace cuda

}  // namespace qpipe
