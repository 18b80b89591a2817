#include "kernels/attention.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/simd.h"

namespace qpipe {

namespace {

// Queries whose scores are held at once, against all the keys that any of them sees.
constexpr std::int64_t query_tile = 64;

void check_layout(const HeadLayout& layout, ConstTensor qkv, std::int64_t seqlen,
                  const Stream& stream) {
  require(qkv.dtype == stream.compute_dtype(), "attention: qkv must have the compute type");
  require(layout.heads > 0 && layout.kv_heads > 0 && layout.head_dim > 0 &&
              layout.heads % layout.kv_heads == 0,
          "attention: heads must be a multiple of kv_heads");
  require(layout.q_block >= 0 && layout.kv_block >= 0 && layout.v_dim >= 0,
          "attention: q_block, kv_block and v_dim must not be negative");
  require(qkv.cols >= layout.width(),
          "attention: qkv must be [tokens, (heads + kv_heads) head_dim + kv_heads v_dim]");
  const auto require_inside = [&](std::int64_t column, std::int64_t width) {
    require(column >= 0 && column + width <= qkv.cols,
            "attention: a head of the layout lies outside of qkv");
  };
  for (std::int64_t h = 0; h < layout.heads; ++h)
    require_inside(layout.q_column(h), layout.head_dim);
  for (std::int64_t g = 0; g < layout.kv_heads; ++g) {
    require_inside(layout.k_column(g), layout.head_dim);
    require_inside(layout.v_column(g), layout.value_dim());
  }
  require(seqlen > 0, "attention: seqlen must be positive");
}

// x[i], x[i + pairs] ← x[i] c − x[i + pairs] s, x[i + pairs] c + x[i] s
QPIPE_SIMD_CLONES void rotate_halves(float* head, std::int64_t pairs, const float* cosine,
                                     const float* sine) {
  float* second = head + pairs;
#pragma omp simd
  for (std::int64_t i = 0; i < pairs; ++i) {
    const float x = head[i];
    const float y = second[i];
    head[i] = x * cosine[i] - y * sine[i];
    second[i] = y * cosine[i] + x * sine[i];
  }
}

// The same on x[2i], x[2i + 1].
QPIPE_SIMD_CLONES void rotate_neighbours(float* head, std::int64_t pairs, const float* cosine,
                                         const float* sine) {
#pragma omp simd
  for (std::int64_t i = 0; i < pairs; ++i) {
    const float x = head[2 * i];
    const float y = head[2 * i + 1];
    head[2 * i] = x * cosine[i] - y * sine[i];
    head[2 * i + 1] = y * cosine[i] + x * sine[i];
  }
}

// Scores s of one query (scaled) → exp(s − max s) with cap and bias applied; returns their sum and
// the sink's, which may be infinite: the output is 0 then, but for e^−88.
QPIPE_SIMD_CLONES float exponentiate(float* s, std::int64_t count, float cap, const float* bias,
                                     float sink) {
  if (cap > 0.0f)
    for (std::int64_t j = 0; j < count; ++j) s[j] = cap * std::tanh(s[j] / cap);
  if (bias != nullptr) {
#pragma omp simd
    for (std::int64_t j = 0; j < count; ++j) s[j] += bias[j];
  }
  float maximum = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : maximum)
  for (std::int64_t j = 0; j < count; ++j) maximum = s[j] > maximum ? s[j] : maximum;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < count; ++j) {
    s[j] = simd_exp(s[j] - maximum);
    sum += s[j];
  }
  return sum + std::exp(sink - maximum);
}

// The first key that query i of a sequence sees.
std::int64_t first_key_of(std::int64_t i, const AttentionOptions& options) {
  const std::int64_t by_window =
      options.window > 0 ? std::max<std::int64_t>(0, i - options.window + 1) : 0;
  return options.chunk > 0 ? std::max(by_window, i - i % options.chunk) : by_window;
}

// Scores of the keys first … first + count − 1 that are not selected become −∞.
void hide_unselected(const std::uint32_t* selected, std::int64_t first, std::int64_t count,
                     float* s) {
  for (std::int64_t j = 0; j < count; ++j)
    if ((selected[(first + j) / 32] >> (first + j) % 32 & 1u) == 0)
      s[j] = -std::numeric_limits<float>::infinity();
}

QPIPE_SIMD_CLONES void divide(float* x, std::int64_t count, float divisor) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) x[i] /= divisor;
}

}  // namespace

void rope(Tensor qkv, const HeadLayout& layout, Matrix<const float> inverse_frequencies,
          float amplitude, bool interleaved, std::int64_t seqlen, Stream& stream) {
  check_layout(layout, qkv, seqlen, stream);
  require(inverse_frequencies.rows == 1 && inverse_frequencies.cols > 0 &&
              2 * inverse_frequencies.cols <= layout.head_dim,
          "rope: inverse_frequencies must be [1, r/2] with r <= head_dim");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::rope(qkv, layout, inverse_frequencies, amplitude, interleaved, seqlen, stream);
  const auto values = qkv.as<float>();
  const std::int64_t pairs = inverse_frequencies.cols;
  const std::int64_t positions = std::min(seqlen, values.rows);
  std::vector<float> table(
      static_cast<std::size_t>(2 * positions * pairs));  // cosines of a position, then its sines
#pragma omp parallel for schedule(static)
  for (std::int64_t position = 0; position < positions; ++position) {
    float* cosine = table.data() + 2 * position * pairs;
    for (std::int64_t i = 0; i < pairs; ++i) {
      const float angle = static_cast<float>(position) * inverse_frequencies(0, i);
      cosine[i] = amplitude * std::cos(angle);
      cosine[pairs + i] = amplitude * std::sin(angle);
    }
  }
  const auto rotate = interleaved ? rotate_neighbours : rotate_halves;
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < values.rows; ++t) {
    const float* cosine = table.data() + 2 * (t % seqlen) * pairs;
    const float* sine = cosine + pairs;
    float* row = values.row(t);
    for (std::int64_t h = 0; h < layout.heads; ++h)
      rotate(row + layout.q_column(h), pairs, cosine, sine);
    for (std::int64_t h = 0; h < layout.kv_heads; ++h)
      rotate(row + layout.k_column(h), pairs, cosine, sine);
  }
}

void attention(ConstTensor qkv, const HeadLayout& layout, std::int64_t seqlen,
               const AttentionOptions& options, Tensor out, Stream& stream) {
  check_layout(layout, qkv, seqlen, stream);
  require(qkv.rows % seqlen == 0, "attention: seqlen must divide the rows of qkv");
  require(out.dtype == stream.compute_dtype() && out.rows == qkv.rows &&
              out.cols == layout.heads * layout.value_dim(),
          "attention: out must be [tokens, heads v_dim] of the compute type");
  require(options.window >= 0 && options.chunk >= 0 && options.soft_cap >= 0.0f,
          "attention: window, chunk and soft_cap must not be negative");
  require(options.key_bias.empty() ||
              (options.key_bias.rows == layout.heads && options.key_bias.cols == seqlen),
          "attention: key_bias must be [heads, seqlen]");
  require(options.sinks.empty() || (options.sinks.rows == 1 && options.sinks.cols == layout.heads),
          "attention: sinks must be [1, heads]");
  require(options.selected.empty() ||
              (options.selected.rows == qkv.rows && options.selected.cols * 32 >= seqlen),
          "attention: selected must be [tokens, seqlen / 32]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) {
      require(std::max(layout.head_dim, layout.value_dim()) <= 512 && layout.head_dim % 8 == 0 &&
                  layout.value_dim() % 8 == 0,
              "attention: on CUDA head_dim and v_dim must be multiples of 8, at most 512");
      return cuda::attention(qkv, layout, seqlen, options, out, stream);
    }
  const auto values = qkv.as<const float>();
  const auto result = out.as<float>();
  const std::int64_t samples = values.rows / seqlen;
  const std::int64_t tiles = (seqlen + query_tile - 1) / query_tile;
  const int head_dim = static_cast<int>(layout.head_dim);
  const int v_dim = static_cast<int>(layout.value_dim());
  const int qkv_stride = static_cast<int>(values.stride);
#pragma omp parallel
  {
    std::vector<float> scores;
#pragma omp for schedule(dynamic)
    for (std::int64_t task = 0; task < samples * layout.heads * tiles; ++task) {
      const std::int64_t begin = task % tiles * query_tile;
      const std::int64_t head = task / tiles % layout.heads;
      const std::int64_t first_row = task / tiles / layout.heads * seqlen;
      const std::int64_t end = std::min(begin + query_tile, seqlen);
      const std::int64_t first_key = first_key_of(begin, options);
      const int queries = static_cast<int>(end - begin);
      const int keys = static_cast<int>(end - first_key);
      const float* q = values.row(first_row + begin) + layout.q_column(head);
      const float* k = values.row(first_row + first_key) + layout.k_column(head / layout.group());
      const float* v = values.row(first_row + first_key) + layout.v_column(head / layout.group());
      scores.resize(static_cast<std::size_t>(query_tile * seqlen));
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, queries, keys, head_dim, options.scale,
                  q, qkv_stride, k, qkv_stride, 0.0f, scores.data(), keys);
      const float sink =
          options.sinks.empty() ? -std::numeric_limits<float>::infinity() : options.sinks(0, head);
      float sum[query_tile];
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t seen = first_key_of(i, options);
        float* row = scores.data() + (i - begin) * keys;
        const float* bias = options.key_bias.empty() ? nullptr : options.key_bias.row(head) + seen;
        std::fill(row, row + (seen - first_key), 0.0f);
        if (!options.selected.empty())
          hide_unselected(options.selected.row(first_row + i), seen, i + 1 - seen,
                          row + (seen - first_key));
        sum[i - begin] =
            exponentiate(row + (seen - first_key), i + 1 - seen, options.soft_cap, bias, sink);
        std::fill(row + (i + 1 - first_key), row + keys, 0.0f);
      }
      float* to = result.row(first_row + begin) + head * v_dim;
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, queries, v_dim, keys,
                  options.value_scale, scores.data(), keys, v, qkv_stride, 0.0f, to,
                  static_cast<int>(result.stride));
      for (std::int64_t i = 0; i < queries; ++i) divide(to + i * result.stride, v_dim, sum[i]);
    }
  }
}

}  // namespace qpipe
