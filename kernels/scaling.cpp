#include "kernels/scaling.h"

#include "kernels/weights.h"

namespace qpipe {

void scale_weight(ConstTensor w, Matrix<const float> column, Matrix<const float> row,
                  Matrix<float> out, Stream& stream) {
  require_weights(w.dtype, "scale_weight: w must be f32, f16 or bf16");
  require(column.empty() || (column.rows == 1 && column.cols == w.cols),
          "scale_weight: column must be [1, d]");
  require(row.empty() || (row.rows == 1 && row.cols == w.rows),
          "scale_weight: row must be [1, rows]");
  require(out.rows == w.rows && out.cols == w.cols, "scale_weight: out must have the shape of w");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::scale_weight(w, column, row, out, stream);
  with_type(w, [&](auto weights) {
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < weights.rows; ++r) {
      const float divisor = row.empty() ? 1.0f : row(0, r);
      for (std::int64_t c = 0; c < weights.cols; ++c)
        out(r, c) = to_float(weights(r, c)) * (column.empty() ? 1.0f : column(0, c)) / divisor;
    }
  });
}

void unscale_hessian(Matrix<float> h, Matrix<const float> s, Stream& stream) {
  require(h.rows == h.cols, "unscale_hessian: h must be square");
  require(s.rows == 1 && s.cols == h.cols, "unscale_hessian: s must be [1, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::unscale_hessian(h, s, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < h.rows; ++i)
    for (std::int64_t j = 0; j < h.cols; ++j) h(i, j) /= s(0, i) * s(0, j);
}

}  // namespace qpipe
