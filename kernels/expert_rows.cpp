#include "kernels/expert_rows.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/simd.h"

namespace qpipe {

namespace {

bool is_activation(DType dtype, const Stream& stream) {
  return dtype == stream.compute_dtype() || dtype == DType::f32;
}

QPIPE_SIMD_CLONES void write_scaled(const float* x, float factor, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = factor * x[i];
}

QPIPE_SIMD_CLONES void add_scaled(const float* x, float factor, std::int64_t count, float* sum) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) sum[i] += factor * x[i];
}

// x · w in 16 parts, each of the elements with one i mod 16.
QPIPE_SIMD_CLONES float dot(const float* x, const float* w, std::int64_t count) {
  constexpr std::int64_t parts = 16;
  std::array<float, parts> part{};
  for (std::int64_t i = 0; i < count / parts * parts; i += parts)
#pragma omp simd
    for (std::int64_t j = 0; j < parts; ++j)
      part[static_cast<std::size_t>(j)] += x[i + j] * w[i + j];
  for (std::int64_t i = count / parts * parts; i < count; ++i)
    part[static_cast<std::size_t>(i % parts)] += x[i] * w[i];
  return std::accumulate(part.begin(), part.end(), 0.0f);
}

}  // namespace

void sort_by_expert(Matrix<const std::int32_t> expert, std::int64_t experts,
                    Matrix<std::int32_t> begin, Matrix<std::int32_t> source,
                    Matrix<std::int32_t> place, Stream& stream) {
  require(expert.cols > 0 && place.rows == expert.rows && place.cols == expert.cols,
          "sort_by_expert: expert and place must be [tokens, k]");
  require((expert.rows <= 1 || expert.contiguous()) && (place.rows <= 1 || place.contiguous()),
          "sort_by_expert: the rows of expert and of place must lie one after the other");
  require(expert.size() <= std::numeric_limits<std::int32_t>::max(),
          "sort_by_expert: too many rows");
  require(experts > 0 && begin.rows == 1 && begin.cols == experts + 1,
          "sort_by_expert: begin must be [1, experts + 1]");
  require(source.rows == 1 && source.cols == expert.size(),
          "sort_by_expert: source must be [1, tokens k]");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::sort_by_expert(expert, experts, begin, source, place, stream);
  const auto pairs = static_cast<std::int32_t>(expert.size());
  std::fill(begin.data, begin.data + experts + 1, 0);
  for (std::int32_t i = 0; i < pairs; ++i) ++begin(0, expert.data[i] + 1);
  std::partial_sum(begin.data, begin.data + experts + 1, begin.data);
  std::vector<std::int32_t> next(begin.data, begin.data + experts);
  for (std::int32_t i = 0; i < pairs; ++i) {
    const std::int32_t row = next[static_cast<std::size_t>(expert.data[i])]++;
    source(0, row) = i;
    place.data[i] = row;
  }
}

void gather_rows(ConstTensor x, Matrix<const std::int32_t> source, std::int64_t k,
                 Matrix<const float> weight, Tensor y, Stream& stream) {
  require(is_activation(x.dtype, stream) && is_activation(y.dtype, stream),
          "gather_rows: x and y must have the compute type or be float32");
  require(k > 0 && y.cols == x.cols, "gather_rows: x must be [tokens, d] and y [rows, d]");
  require(source.rows == 1 && source.cols == y.rows, "gather_rows: source must be [1, rows]");
  require(weight.empty() || (weight.rows == x.rows && weight.cols == k),
          "gather_rows: weight must be [tokens, k] or empty");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::gather_rows(x, source, k, weight, y, stream);
  const auto from = x.as<const float>();
  const auto to = y.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < to.rows; ++r) {
    const std::int64_t t = source(0, r) / k;
    write_scaled(from.row(t), weight.empty() ? 1.0f : weight(t, source(0, r) % k), to.cols,
                 to.row(r));
  }
}

void combine_rows(ConstTensor y, Matrix<const std::int32_t> place, Matrix<const float> weight,
                  ConstTensor shared, Matrix<const float> shared_weight, Tensor z, Stream& stream) {
  require(is_activation(y.dtype, stream) && is_activation(z.dtype, stream) &&
              (shared.empty() || is_activation(shared.dtype, stream)),
          "combine_rows: y, shared and z must have the compute type or be float32");
  require(place.rows == z.rows && y.rows == place.size() && y.cols == z.cols,
          "combine_rows: place must be [tokens, k], y [tokens k, d] and z [tokens, d]");
  require(weight.empty() || (weight.rows == place.rows && weight.cols == place.cols),
          "combine_rows: weight must be [tokens, k] or empty");
  require(shared.empty() || (shared.rows == z.rows && shared.cols == z.cols),
          "combine_rows: shared must be [tokens, d] or empty");
  require(shared_weight.empty() ||
              (!shared.empty() && shared_weight.rows == z.rows && shared_weight.cols == 1),
          "combine_rows: shared_weight must be [tokens, 1] or empty");
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::combine_rows(y, place, weight, shared, shared_weight, z, stream);
  const auto from = y.as<const float>();
  const auto to = z.as<float>();
#pragma omp parallel
  {
    std::vector<float> sum(static_cast<std::size_t>(to.cols));  // z may be shared
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < to.rows; ++t) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (std::int64_t s = 0; s < place.cols; ++s)
        add_scaled(from.row(place(t, s)), weight.empty() ? 1.0f : weight(t, s), to.cols,
                   sum.data());
      if (!shared.empty())
        add_scaled(shared.as<const float>().row(t),
                   shared_weight.empty() ? 1.0f : shared_weight(t, 0), to.cols, sum.data());
      std::copy(sum.begin(), sum.end(), to.row(t));
    }
  }
}

void row_gate(ConstTensor x, ConstTensor w, Matrix<float> g, Stream& stream) {
  require(x.dtype == stream.compute_dtype() && w.dtype == x.dtype,
          "row_gate: x and w must have the compute type");
  require(x.cols > 0 && w.rows == 1 && w.cols == x.cols && g.rows == x.rows && g.cols == 1,
          "row_gate: x must be [tokens, d], w [1, d] and g [tokens, 1]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::row_gate(x, w, g, stream);
  const auto from = x.as<const float>();
  const auto* row = static_cast<const float*>(w.data);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < from.rows; ++t)
    g(t, 0) = 1.0f / (1.0f + std::exp(-dot(from.row(t), row, from.cols)));
}

}  // namespace qpipe
