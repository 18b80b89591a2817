#include "kernels/gated_group_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/simd.h"

namespace qpipe {

namespace {

QPIPE_SIMD_CLONES void silu_row(const float* z, std::int64_t d, float* f) {
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) f[i] = z[i] / (1.0f + simd_exp(-z[i]));
}

// f: the gate's values; the row's result takes their place.
QPIPE_SIMD_CLONES void norm_row(const float* x, const float* weight, std::int64_t d, float eps,
                                bool gate_first, float* f) {
  double squares = 0.0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t i = 0; i < d; ++i) {
    const auto value = static_cast<double>(gate_first ? x[i] * f[i] : x[i]);
    squares += value * value;
  }
  const auto inverse = static_cast<float>(
      1.0 / std::sqrt(squares / static_cast<double>(d) + static_cast<double>(eps)));
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) f[i] *= x[i] * inverse * weight[i];
}

}  // namespace

void gated_group_norm(ConstTensor x, ConstTensor z, ConstTensor weight, const GatedGroupNorm& norm,
                      Tensor y, Stream& stream) {
  const DType type = stream.compute_dtype();
  require(x.dtype == type && z.dtype == type && weight.dtype == type && y.dtype == type,
          "gated_group_norm: all must have the compute type");
  require(norm.groups > 0 && x.cols > 0 && x.cols % norm.groups == 0,
          "gated_group_norm: groups must divide the columns");
  require(z.rows == x.rows && z.cols == x.cols && y.rows == x.rows && y.cols == x.cols,
          "gated_group_norm: x, z and y must be [tokens, d]");
  require(weight.rows == 1 && weight.cols == x.cols, "gated_group_norm: weight must be [1, d]");
  const std::int64_t d = x.cols / norm.groups;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::gated_group_norm(x, z, weight, norm, y, stream);
  const auto from = x.as<const float>();
  const auto gates = z.as<const float>();
  const auto w = weight.as<const float>();
  const auto to = y.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < from.rows; ++t)
    for (std::int64_t g = 0; g < norm.groups; ++g) {
      // y may be x, whose values are read after the first of f is written.
      std::vector<float> f(static_cast<std::size_t>(d));
      silu_row(gates.row(t) + g * d, d, f.data());
      norm_row(from.row(t) + g * d, w.data + g * d, d, norm.eps, norm.gate_first, f.data());
      std::copy(f.begin(), f.end(), to.row(t) + g * d);
    }
}

}  // namespace qpipe
