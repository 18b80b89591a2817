#include "kernels/difference.h"

#include <algorithm>
#include <vector>

#include "kernels/weights.h"

namespace qpipe {

namespace {

// Rows are added in chunks of this many, and the chunks in order: the same sum for any number of
// threads.
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
    with_type(b, [&](auto y) {
      total(0, 0) += sum_rows(
          x.rows, [&](std::int64_t r) { return squared_distance(x.row(r), y.row(r), x.cols); });
    });
  });
}

}  // namespace qpipe
