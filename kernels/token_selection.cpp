#include "kernels/token_selection.h"

#include <cblas.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace qpipe {

namespace {

constexpr std::int64_t query_tile = 32;

// Σ_h weight_h max(0, products_h) for queries of a tile: adds one head.
void add_head(const float* products, const float* weight, std::int64_t weight_stride,
              std::int64_t queries, std::int64_t keys, float* score) {
  for (std::int64_t i = 0; i < queries; ++i) {
    const float w = weight[i * weight_stride];
#pragma omp simd
    for (std::int64_t j = 0; j < keys; ++j)
      score[i * keys + j] += w * std::max(0.0f, products[i * keys + j]);
  }
}

void set_bits(const float* score, std::int64_t tokens, std::int64_t top_k,
              std::vector<std::int64_t>& order, std::uint32_t* bits) {
  const std::int64_t chosen = std::min(tokens, top_k);
  order.resize(static_cast<std::size_t>(tokens));
  std::iota(order.begin(), order.end(), 0);
  if (chosen < tokens)
    std::nth_element(order.begin(), order.begin() + chosen, order.end(),
                     [&](std::int64_t a, std::int64_t b) {
                       return score[a] > score[b] || (score[a] == score[b] && a < b);
                     });
  for (std::int64_t i = 0; i < chosen; ++i) {
    const auto token = static_cast<std::uint32_t>(order[static_cast<std::size_t>(i)]);
    bits[token / 32] |= 1u << token % 32;
  }
}

}  // namespace

void select_tokens(ConstTensor q, ConstTensor k, ConstTensor weight, std::int64_t top_k,
                   Matrix<std::uint32_t> selected, Stream& stream) {
  const std::int64_t tokens = q.rows;
  const std::int64_t heads = weight.cols;
  require(q.dtype == stream.compute_dtype() && k.dtype == q.dtype && weight.dtype == q.dtype,
          "select_tokens: q, k and weight must have the compute type");
  require(k.rows == tokens && weight.rows == tokens && q.cols == heads * k.cols,
          "select_tokens: q must be [T, heads d], k [T, d] and weight [T, heads]");
  require(top_k > 0 && selected.rows == tokens && selected.cols == selection_words(tokens),
          "select_tokens: top_k must be above 0, selected [T, words]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::select_tokens(q, k, weight, top_k, selected, stream);
  const auto queries = q.as<const float>();
  const auto keys = k.as<const float>();
  const auto weights = weight.as<const float>();
  const int d = static_cast<int>(keys.cols);
#pragma omp parallel
  {
    std::vector<float> products;
    std::vector<float> score;
    std::vector<std::int64_t> order;
#pragma omp for schedule(dynamic)
    for (std::int64_t begin = 0; begin < tokens; begin += query_tile) {
      const std::int64_t end = std::min(begin + query_tile, tokens);
      const std::int64_t rows = end - begin;
      products.resize(static_cast<std::size_t>(rows * end));
      score.assign(static_cast<std::size_t>(rows * end), 0.0f);
      for (std::int64_t h = 0; h < heads; ++h) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows),
                    static_cast<int>(end), d, 1.0f, queries.row(begin) + h * d,
                    static_cast<int>(queries.stride), keys.data, static_cast<int>(keys.stride),
                    0.0f, products.data(), static_cast<int>(end));
        add_head(products.data(), weights.row(begin) + h, weights.stride, rows, end, score.data());
      }
      for (std::int64_t t = begin; t < end; ++t) {
        std::fill_n(selected.row(t), selected.cols, 0u);
        set_bits(score.data() + (t - begin) * end, t + 1, top_k, order, selected.row(t));
      }
    }
  }
}

}  // namespace qpipe
