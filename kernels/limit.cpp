#include "kernels/limit.h"

#include <cmath>

namespace qpipe {

namespace {

void check_type(ConstTensor x, const Stream& stream, const char* message) {
  require(x.dtype == stream.compute_dtype() || x.dtype == DType::f32, message);
}

template <class Operation>
void apply(Matrix<float> x, Operation operation) {
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < x.rows; ++r) {
    float* row = x.row(r);
    for (std::int64_t c = 0; c < x.cols; ++c) row[c] = operation(row[c]);
  }
}

}  // namespace

void clamp(Tensor x, float limit, Stream& stream) {
  check_type(x, stream, "clamp: x must have the compute type or be float32");
  require(limit >= 0.0f, "clamp: limit must not be negative");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::clamp(x, limit, stream);
  apply(x.as<float>(), [limit](float value) {
    return value < -limit ? -limit : value > limit ? limit : value;
  });
}

void soft_cap(Tensor x, float cap, Stream& stream) {
  check_type(x, stream, "soft_cap: x must have the compute type or be float32");
  require(cap > 0.0f, "soft_cap: cap must be positive");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::soft_cap(x, cap, stream);
  apply(x.as<float>(), [cap](float value) { return cap * std::tanh(value / cap); });
}

}  // namespace qpipe
