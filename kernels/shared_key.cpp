#include "kernels/shared_key.h"

#include <algorithm>

namespace qpipe {

void insert_shared_key(ConstTensor kv, ConstTensor key, std::int64_t heads, std::int64_t nope,
                       Tensor out, Stream& stream) {
  require(kv.dtype == stream.compute_dtype() && key.dtype == kv.dtype && out.dtype == kv.dtype,
          "insert_shared_key: kv, key and out must have the compute type");
  require(heads > 0 && nope >= 0 && kv.cols % heads == 0 && kv.cols / heads >= nope,
          "insert_shared_key: kv must be [tokens, heads (nope + V)]");
  require(kv.rows == out.rows && key.rows == out.rows && out.cols == kv.cols + heads * key.cols,
          "insert_shared_key: key must be [tokens, r] and out [tokens, heads (nope + r + V)]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::insert_shared_key(kv, key, heads, nope, out, stream);
  const auto from = kv.as<const float>();
  const auto shared = key.as<const float>();
  const auto to = out.as<float>();
  const std::int64_t own = kv.cols / heads;
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < to.rows; ++t) {
    float* next = to.row(t);
    for (std::int64_t h = 0; h < heads; ++h) {
      const float* head = from.row(t) + h * own;
      next = std::copy_n(head, nope, next);
      next = std::copy_n(shared.row(t), shared.cols, next);
      next = std::copy_n(head + nope, own - nope, next);
    }
  }
}

}  // namespace qpipe
