#include "kernels/delta_rule.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/delta_chunk.h"
#include "kernels/simd.h"

namespace qpipe {

namespace {

// s = decay · s, and memory += k · s: a row of the state decays and says what it knows of the key.
QPIPE_SIMD_CLONES void decay_and_recall(float decay, float k, std::int64_t count, float* s,
                                        float* memory) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    s[i] *= decay;
    memory[i] += k * s[i];
  }
}

// s += k · delta, and out += q · s.
QPIPE_SIMD_CLONES void correct_and_read(float k, const float* delta, float q, std::int64_t count,
                                        float* s, float* out) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    s[i] += k * delta[i];
    out[i] += q * s[i];
  }
}

// scale / √(Σ x² + 1e-6) · x
void normalise(const float* x, std::int64_t count, float scale, float* y) {
  double squares = 0.0;
  for (std::int64_t i = 0; i < count; ++i) squares += static_cast<double>(x[i]) * x[i];
  const auto factor = static_cast<float>(static_cast<double>(scale) / std::sqrt(squares + 1e-6));
  for (std::int64_t i = 0; i < count; ++i) y[i] = factor * x[i];
}

struct HeadRows {
  Matrix<const float> q, k, v, g;  // of one head and one sequence
  const float* beta = nullptr;
  std::int64_t beta_stride = 0;
  Matrix<float> out;
};

void run_head(const HeadRows& head) {
  const std::int64_t kd = head.k.cols;
  const std::int64_t vd = head.v.cols;
  const float scale = 1.0f / std::sqrt(static_cast<float>(kd));
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  std::vector<float> state(size(kd * vd)), q(size(kd)), k(size(kd)), decay(size(kd)),
      delta(size(vd));
  for (std::int64_t t = 0; t < head.k.rows; ++t) {
    normalise(head.q.row(t), kd, scale, q.data());
    normalise(head.k.row(t), kd, 1.0f, k.data());
    for (std::int64_t c = 0; c < kd; ++c)
      decay[size(c)] = c < head.g.cols ? std::exp(head.g(t, c)) : decay[0];
    std::fill(delta.begin(), delta.end(), 0.0f);
    for (std::int64_t c = 0; c < kd; ++c)
      decay_and_recall(decay[size(c)], k[size(c)], vd, state.data() + c * vd, delta.data());
    const float beta = head.beta[t * head.beta_stride];
    for (std::int64_t i = 0; i < vd; ++i) delta[size(i)] = beta * (head.v(t, i) - delta[size(i)]);
    float* out = head.out.row(t);
    std::fill(out, out + vd, 0.0f);
    for (std::int64_t c = 0; c < kd; ++c)
      correct_and_read(k[size(c)], delta.data(), q[size(c)], vd, state.data() + c * vd, out);
  }
}

}  // namespace

std::int64_t delta_rule_scratch(const DeltaHeads& heads) {
  return heads.value_heads * delta_chunk_elements(padded_key_dim(heads.key_dim)) / delta_chunk;
}

void delta_rule(ConstTensor q, ConstTensor k, ConstTensor v, Matrix<const float> g,
                Matrix<const float> beta, const DeltaHeads& heads, std::int64_t seqlen, Tensor out,
                Tensor scratch, Stream& stream) {
  require(heads.key_heads > 0 && heads.value_heads > 0 && heads.key_dim > 0 &&
              heads.value_dim > 0 && heads.value_heads % heads.key_heads == 0,
          "delta_rule: heads of v must share those of k evenly");
  for (const ConstTensor& x : {q, k, v, ConstTensor(out)})
    require(x.dtype == stream.compute_dtype() && x.rows == v.rows,
            "delta_rule: q, k, v and out must have the compute type and as many rows");
  require(q.cols == heads.keys() && k.cols == heads.keys(),
          "delta_rule: q and k must be [tokens, key_heads key_dim]");
  require(v.cols == heads.values() && out.cols == heads.values(),
          "delta_rule: v and out must be [tokens, value_heads value_dim]");
  require(g.rows == v.rows && g.cols == heads.decays(),
          "delta_rule: g must be [tokens, value_heads], times key_dim with a decay a channel");
  require(beta.rows == v.rows && beta.cols == heads.value_heads,
          "delta_rule: beta must be [tokens, value_heads]");
  require(seqlen > 0 && v.rows % seqlen == 0, "delta_rule: tokens must be whole sequences");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::delta_rule(q, k, v, g, beta, heads, seqlen, out, scratch, stream);
  const auto all_q = q.as<const float>();
  const auto all_k = k.as<const float>();
  const auto all_v = v.as<const float>();
  const auto all_out = out.as<float>();
  const std::int64_t sharing = heads.value_heads / heads.key_heads;
  const std::int64_t decays = heads.decays() / heads.value_heads;
  const std::int64_t count = v.rows / seqlen * heads.value_heads;
#pragma omp parallel for schedule(static)
  for (std::int64_t index = 0; index < count; ++index) {
    const std::int64_t row = index / heads.value_heads * seqlen;
    const std::int64_t h = index % heads.value_heads;
    const auto part = [&](auto matrix, std::int64_t column, std::int64_t width) {
      return matrix.row_range(row, seqlen).col_range(column, width);
    };
    HeadRows head;
    head.q = part(all_q, h / sharing * heads.key_dim, heads.key_dim);
    head.k = part(all_k, h / sharing * heads.key_dim, heads.key_dim);
    head.v = part(all_v, h * heads.value_dim, heads.value_dim);
    head.g = part(g, h * decays, decays);
    head.beta = beta.row(row) + h;
    head.beta_stride = beta.stride;
    head.out = part(all_out, h * heads.value_dim, heads.value_dim);
    run_head(head);
  }
}

}  // namespace qpipe
