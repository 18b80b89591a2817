#include "kernels/add.h"

#include "kernels/weights.h"

namespace qpipe {

void add_scaled(ConstTensor x, float alpha, Tensor y, Stream& stream) {
  const auto allowed = [&](DType type) {
    return type == stream.compute_dtype() || type == DType::f32;
  };
  require(allowed(x.dtype) && allowed(y.dtype),
          "add_scaled: x and y must have the compute type or be float32");
  require(x.rows == y.rows && x.cols == y.cols, "add_scaled: x and y must have the same shape");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::add_scaled(x, alpha, y, stream);
  const auto from = x.as<const float>();
  const auto to = y.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < to.rows; ++t)
    for (std::int64_t c = 0; c < to.cols; ++c) to(t, c) += alpha * from(t, c);
}

void add_rows(ConstTensor table, std::int64_t first_row, std::int64_t seqlen, Tensor y,
              Stream& stream) {
  require_weights(table.dtype, "add_rows: table must be f32, f16 or bf16");
  require(y.dtype == stream.compute_dtype(), "add_rows: y must have the compute type");
  require(table.cols == y.cols, "add_rows: table must be [rows, d] and y [tokens, d]");
  require(seqlen > 0 && first_row >= 0 && first_row + std::min(seqlen, y.rows) <= table.rows,
          "add_rows: table must have a row for every position");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::add_rows(table, first_row, seqlen, y, stream);
  const auto to = y.as<float>();
  with_type(table, [&](auto positions) {
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < to.rows; ++t) {
      const auto* from = positions.row(first_row + t % seqlen);
      for (std::int64_t c = 0; c < to.cols; ++c) to(t, c) += to_float(from[c]);
    }
  });
}

}  // namespace qpipe
