// Rotary positions and causal attention on the fused output of the q, k and v projections.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// Where the heads lie in a row of the fused [tokens, ≥ width] matrix. With G = heads / kv_heads,
// d = head_dim, Q = q_block (0: G), K = kv_block (0: 1) and V = v_dim (0: d):
//   q head h at column (h / Q) · q_group_stride + (h mod Q) · d,
//   k head g at column k_begin + (g / K) · kv_stride + (g mod K) · d, and
//   v head g, V wide, at column v_begin + (g / K) · kv_stride + (g mod K) · V.
// q|k|v side by side (Llama, Falcon-7B): q_group_stride = G·d, k_begin = heads·d, kv_stride = d.
// Interleaved by group (Falcon-40B; Falcon-RW and GPT-NeoX with G = 1): both strides are (G + 2)·d.
// CodeGen's four blocks of q|v|k: Q = K = heads / 4, both strides 3·Q·d, k_begin = 2·Q·d,
// v_begin = Q·d.
struct HeadLayout {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t q_group_stride = 0;
  std::int64_t kv_stride = 0;
  std::int64_t k_begin = 0;
  std::int64_t v_begin = 0;
  std::int64_t q_block = 0;
  std::int64_t kv_block = 0;
  std::int64_t v_dim = 0;

  std::int64_t group() const { return heads / kv_heads; }
  std::int64_t heads_of_q_block() const { return q_block > 0 ? q_block : group(); }
  std::int64_t heads_of_kv_block() const { return kv_block > 0 ? kv_block : 1; }
  std::int64_t value_dim() const { return v_dim > 0 ? v_dim : head_dim; }
  std::int64_t width() const { return (heads + kv_heads) * head_dim + kv_heads * value_dim(); }
  std::int64_t q_column(std::int64_t head) const {
    return head / heads_of_q_block() * q_group_stride + head % heads_of_q_block() * head_dim;
  }
  std::int64_t k_column(std::int64_t kv_head) const {
    return k_begin + kv_head / heads_of_kv_block() * kv_stride +
           kv_head % heads_of_kv_block() * head_dim;
  }
  std::int64_t v_column(std::int64_t kv_head) const {
    return v_begin + kv_head / heads_of_kv_block() * kv_stride +
           kv_head % heads_of_kv_block() * value_dim();
  }
  // Whether v heads are `value_dim` columns each, one behind the other.
  bool values_side_by_side() const {
    return heads_of_kv_block() >= kv_heads || kv_stride == heads_of_kv_block() * value_dim();
  }
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
  std::int64_t chunk = 0;   // … and of them those with j / chunk = i / chunk; 0: all (Llama 4)
  float soft_cap = 0.0f;    // s ← cap · tanh(s / cap) when > 0, after scale, before key_bias
  Matrix<const float>
      key_bias;  // [heads, seqlen] or empty: added to the score of key j after scale (ALiBi)
  // [1, heads] or empty: the score of one key more, whose value is 0; scale, cap and bias do not
  // touch it (gpt-oss)
  Matrix<const float> sinks;
  float value_scale = 1.0f;  // of v
  // [tokens, ≥ seqlen / 32] or empty: token t sees of those only the tokens j of its sequence for
  // which bit j mod 32 of word j / 32 is set, at least one (kernels/token_selection.h)
  Matrix<const std::uint32_t> selected;
};

// out[t, h·V ...] = value_scale · Σ_j p_j v_j over the tokens j that t may see, with
//   s_j = scale · q_t·k_j + key_bias[h, j],  p_j = exp s_j / (Σ_i exp s_i + exp sinks[h]),
// each run of seqlen rows of qkv being one sequence. qkv [samples·seqlen, ≥ width], out
// [samples·seqlen, heads·V]. Compute type; softmax in float32. CUDA: tiled with an online softmax,
// no seqlen² buffer; head_dim and V ≤ 512 and multiples of 8, as all columns of heads.
void attention(ConstTensor qkv, const HeadLayout& layout, std::int64_t seqlen,
               const AttentionOptions& options, Tensor out, Stream& stream);

namespace cuda {
decltype(qpipe::rope) rope;
decltype(qpipe::attention) attention;
}  // namespace cuda

}  // namespace qpipe
