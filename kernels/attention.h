// Rotary positions and causal attention on the fused output of the q, k and v projections.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// Where the heads lie in a row of the fused [tokens, width] matrix. With G = heads / kv_heads:
//   q head h at column (h / G) · q_group_stride + (h % G) · head_dim,   k head g at k_begin + g ·
//   kv_stride, v head g at v_begin + g · kv_stride.
// q|k|v side by side (Llama, Falcon-7B): q_group_stride = G·head_dim, k_begin = heads·head_dim,
// kv_stride = head_dim. Interleaved by group (Falcon-40B; Falcon-RW and GPT-NeoX with G = 1): both
// strides are (G + 2)·head_dim.
struct HeadLayout {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t q_group_stride = 0;
  std::int64_t kv_stride = 0;
  std::int64_t k_begin = 0;
  std::int64_t v_begin = 0;

  std::int64_t group() const { return heads / kv_heads; }
  std::int64_t width() const { return (heads + 2 * kv_heads) * head_dim; }
  std::int64_t q_column(std::int64_t head) const {
    return head / group() * q_group_stride + head % group() * head_dim;
  }
  std::int64_t k_column(std::int64_t kv_head) const { return k_begin + kv_head * kv_stride; }
  std::int64_t v_column(std::int64_t kv_head) const { return v_begin + kv_head * kv_stride; }
  bool operator==(const HeadLayout&) const = default;
};

// Rotates q and k heads in place. Row r has position r % seqlen. With f = inverse_frequencies [1,
// r/2] (r ≤ head_dim the rotated width), angle a = position · f[i], c = amplitude·cos a, s =
// amplitude·sin a:
//   half-split (default):  x[i], x[i + r/2]  ←  x[i] c − x[i + r/2] s,  x[i + r/2] c + x[i] s
//   interleaved (GPT-J):   the same on the pair x[2i], x[2i + 1].
// Angles, sines and cosines in float32, as the reference does.
void rope(Tensor qkv, const HeadLayout& layout, Matrix<const float> inverse_frequencies,
          float amplitude, bool interleaved, std::int64_t seqlen, Stream& stream);

struct AttentionOptions {
  float scale = 1.0f;       // on the raw scores q·k
  std::int64_t window = 0;  // token i sees tokens j with i − window < j ≤ i; 0: all j ≤ i
  float soft_cap = 0.0f;    // s ← cap · tanh(s / cap) when > 0, after scale
  Matrix<const float>
      key_bias;  // [heads, seqlen] or empty: added to the score of key j after scale (ALiBi)
};

// out[t, h·head_dim ...] = Σ_j softmax_j(scale · q_t·k_j + key_bias[h, j]) v_j over the tokens j
// that t may see, each run of seqlen rows of qkv being one sequence. qkv [samples·seqlen, width],
// out [samples·seqlen, heads·head_dim]. Compute type; softmax in float32. CUDA: tiled with an
// online softmax, no seqlen² buffer; head_dim ≤ 256 and a multiple of 8.
void attention(ConstTensor qkv, const HeadLayout& layout, std::int64_t seqlen,
               const AttentionOptions& options, Tensor out, Stream& stream);

namespace cuda {
decltype(qpipe::rope) rope;
decltype(qpipe::attention) attention;
}  // namespace cuda

}  // namespace qpipe
