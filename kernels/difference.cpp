#include "kernels/difference.h"

#include <cblas.h>

#include <algorithm>
#include <vector>

#include "kernels/simd.h"
#include "kernels/weights.h"

namespace qpipe {

namespace {

// Rows are added in chunks of this many, and the chunks in order: the same sum for any number of threads.
constexpr std::int64_t chunk_rows = 16;

template <class RowSum>
double sum_rows(std::int64_t rows, RowSum row_sum) {
  const std::int64_t chunks = (rows + chunk_rows - 1) / chunk_rows;
  std::vector<double> partial(static_cast<std::size_t>(chunks), 0.0);
#pragma omp parallel for schedule(static)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
    for (std::int64_t r = chunk * chunk_rows; r < std::min(rows, (chunk + 1) * chunk_rows); ++r)
      partial[static_cast<std::size_t>(chunk)] += row_sum(r);
  double total = 0.0;
  for (const double value : partial) total += value;
  return total;
}

template <class A, class B>
double squared_distance(const A* a, const B* b, std::int64_t count) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) {
    const float difference = to_float(a[i]) - to_float(b[i]);
    sum += static_cast<double>(difference) * difference;
  }
  return sum;
}

QPIPE_SIMD_CLONES double dot(const float* a, const float* b, std::int64_t count) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

void check_pair(ConstTensor a, ConstTensor b, const Matrix<double>& total) {
  require(a.rows == b.rows && a.cols == b.cols, "difference: a and b must have the same shape");
  require_weights(a.dtype, "difference: a must be f32, f16 or bf16");
  require_weights(b.dtype, "difference: b must be f32, f16 or bf16");
  require(total.rows == 1 && total.cols == 1, "difference: total must be [1, 1]");
}

}  // namespace

void add_squared_difference(ConstTensor a, ConstTensor b, Matrix<double> total, Stream& stream) {
  check_pair(a, b, total);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::add_squared_difference(a, b, total, stream);
  with_type(a, [&](auto x) {
    with_type(
        b, [&](auto y) { total(0, 0) += sum_rows(x.rows, [&](std::int64_t r) { return squared_distance(x.row(r), y.row(r), x.cols); }); });
  });
}

void add_gram_loss(ConstTensor a, ConstTensor b, Matrix<const float> h, Matrix<float> scratch, Matrix<double> total, Stream& stream) {
  check_pair(a, b, total);
  require(h.rows == a.cols && h.cols == a.cols, "add_gram_loss: h must be [d, d]");
  require(scratch.rows >= 2 * a.rows && scratch.cols == a.cols && scratch.contiguous(), "add_gram_loss: scratch must be [2 * rows, d]");
  if (a.size() == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::add_gram_loss(a, b, h, scratch, total, stream);
  const Matrix<float> delta = scratch.row_range(0, a.rows);
  const Matrix<float> product = scratch.row_range(a.rows, a.rows);
  with_type(a, [&](auto x) {
    with_type(b, [&](auto y) {
#pragma omp parallel for schedule(static)
      for (std::int64_t r = 0; r < delta.rows; ++r)
        for (std::int64_t c = 0; c < delta.cols; ++c) delta(r, c) = to_float(x(r, c)) - to_float(y(r, c));
    });
  });
  const std::int64_t chunks = (delta.rows + chunk_rows - 1) / chunk_rows;
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t begin = chunk * chunk_rows;
    const std::int64_t rows = std::min(chunk_rows, delta.rows - begin);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<int>(rows), static_cast<int>(h.cols), static_cast<int>(h.rows), 1.0f,
                delta.row(begin), static_cast<int>(delta.stride), h.data, static_cast<int>(h.stride), 0.0f, product.row(begin),
                static_cast<int>(product.stride));
  }
  total(0, 0) += sum_rows(delta.rows, [&](std::int64_t r) { return dot(delta.row(r), product.row(r), delta.cols); });
}

}  // namespace qpipe
