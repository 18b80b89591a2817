#include "kernels/gram_loss.h"

#include <cblas.h>

#include <algorithm>
#include <vector>

#include "kernels/simd.h"
#include "kernels/weights.h"

namespace qpipe {

namespace {

// Rows are multiplied and added in chunks of this many, and the chunks' sums in order: the same sum
// for any number of threads.
constexpr std::int64_t chunk_rows = 16;

QPIPE_SIMD_CLONES double dot(const float* a, const float* b, std::int64_t count) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

}  // namespace

GramMatrix gram_matrix(Matrix<const float> h, Stream& stream) {
  require(h.rows == h.cols, "gram_matrix: h must be [d, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::gram_matrix(h, stream);
  return {{}, h};
}

void gram_loss(ConstTensor a, ConstTensor b, const GramMatrix& h, Matrix<double> loss,
               Stream& stream) {
  const std::int64_t d = a.cols;
  require(a.rows == b.rows && b.cols == d, "gram_loss: a and b must have the same shape");
  require_weights(a.dtype, "gram_loss: a must be f32, f16 or bf16");
  require_weights(b.dtype, "gram_loss: b must be f32, f16 or bf16");
  require(h.values.rows == d && h.values.cols == d, "gram_loss: h must be [d, d]");
  require(loss.rows == 1 && loss.cols == 1, "gram_loss: loss must be [1, 1]");
  if (a.size() == 0) return fill_zero(loss.data, sizeof(double), stream);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::gram_loss(a, b, h, loss, stream);
  const auto gram = h.values.as<const float>();
  const Array<float> differences(a.rows, d, stream);
  const Array<float> products(a.rows, d, stream);
  const Matrix<float> delta = differences;
  const Matrix<float> product = products;
  with_type(a, [&](auto x) {
    with_type(b, [&](auto y) {
#pragma omp parallel for schedule(static)
      for (std::int64_t r = 0; r < delta.rows; ++r)
        for (std::int64_t c = 0; c < d; ++c) delta(r, c) = to_float(x(r, c)) - to_float(y(r, c));
    });
  });
  const std::int64_t chunks = (delta.rows + chunk_rows - 1) / chunk_rows;
  std::vector<double> partial(static_cast<std::size_t>(chunks), 0.0);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t begin = chunk * chunk_rows;
    const std::int64_t rows = std::min(chunk_rows, delta.rows - begin);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<int>(rows),
                static_cast<int>(d), static_cast<int>(d), 1.0f, delta.row(begin),
                static_cast<int>(delta.stride), gram.data, static_cast<int>(gram.stride), 0.0f,
                product.row(begin), static_cast<int>(product.stride));
    for (std::int64_t r = begin; r < begin + rows; ++r)
      partial[static_cast<std::size_t>(chunk)] += dot(delta.row(r), product.row(r), d);
  }
  loss(0, 0) = 0.0;
  for (const double value : partial) loss(0, 0) += value;
}

}  // namespace qpipe
