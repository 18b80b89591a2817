#include <algorithm>

#include "kernels/row_product.h"
#include "kernels/split_multiply.h"

namespace qpipe::cuda {

void multiply_rows(Matrix<const float> a, Matrix<const float> b, Matrix<float> c, Stream& stream) {
  const SplitMultiply product(a.rows, a.cols, std::min(product_columns, b.cols), stream);
  fill_zero(c.data, static_cast<std::size_t>(c.size()) * sizeof(float), stream);
  for (std::int64_t begin = 0; begin < b.cols; begin += product_columns) {
    const std::int64_t count = std::min(product_columns, b.cols - begin);
    const Matrix<float> part = c.col_range(begin, count);
    product.run(part, a, b.col_range(begin, count), part, stream);
  }
}

}  // namespace qpipe::cuda
