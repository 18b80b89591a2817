#include "kernels/diagonal.h"

namespace qpipe {

void diagonal(Matrix<const float> a, Matrix<float> out, Stream& stream) {
  require(a.rows == a.cols && out.cols == a.cols, "diagonal: a must be [d, d] and out [1, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::diagonal(a, out, stream);
  for (std::int64_t i = 0; i < a.cols; ++i) out(0, i) = a(i, i);
}

void set_identity(Matrix<float> a, Stream& stream) {
  require(a.rows == a.cols, "set_identity: a must be [d, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::set_identity(a, stream);
  for (std::int64_t i = 0; i < a.rows; ++i)
    for (std::int64_t j = 0; j < a.cols; ++j) a(i, j) = i == j ? 1.0f : 0.0f;
}

}  // namespace qpipe
