#include "kernels/half_agreement.h"

#include <algorithm>

namespace qpipe {

void half_agreement(Matrix<const float> a, Matrix<const float> b, Matrix<float> agreement,
                    Stream& stream) {
  require(a.rows == b.rows && a.cols == b.cols && agreement.cols == a.cols,
          "half_agreement: a and b must be [rows, d], agreement [1, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::half_agreement(a, b, agreement, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t k = 0; k < a.cols; ++k) {
    double noise = 0.0;
    double power = 0.0;
    for (std::int64_t r = 0; r < a.rows; ++r) {
      const double difference = static_cast<double>(a(r, k)) - b(r, k);
      const double sum = static_cast<double>(a(r, k)) + b(r, k);
      noise += difference * difference;
      power += sum * sum;
    }
    agreement(0, k) = power > 0.0 ? static_cast<float>(std::max(0.0, 1.0 - noise / power)) : 0.0f;
  }
}

}  // namespace qpipe
