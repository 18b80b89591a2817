#include <algorithm>

#include "kernels/row_product.h"
#include "kernels/split_multiply.h"
#include "kernels/transpose.h"

namespace qpipe::cuda {

void multiply_rows(Matrix<const float> a, Matrix<const float> b, RightFactor kind, Matrix<float> c,
                   Stream& stream) {
  const std::int64_t depth = a.cols;
  const std::int64_t columns = std::min(product_columns, c.cols);
  const SplitMultiply product(a.rows, depth, columns, stream);
  const Array<float> turned(kind == RightFactor::upper_transposed ? depth : 0, columns, stream);
  fill_zero(c.data, static_cast<std::size_t>(c.size()) * sizeof(float), stream);
  for (std::int64_t begin = 0; begin < c.cols; begin += columns) {
    const std::int64_t count = std::min(columns, c.cols - begin);
    const Matrix<float> part = c.col_range(begin, count);
    switch (kind) {
      case RightFactor::plain: product.run(part, a, b.col_range(begin, count), part, stream); break;
      case RightFactor::upper: {  // rows beyond the last of the columns are 0 there
        const std::int64_t end = begin + count;
        product.run(part, a.col_range(0, end), b.row_range(0, end).col_range(begin, count), part,
                    stream);
        break;
      }
      case RightFactor::upper_transposed: {  // columns before the first of the rows are 0 there
        const Matrix<float> right(turned.view.data, depth - begin, count);
        cuda::transpose(b.row_range(begin, count).col_range(begin, depth - begin), right, stream);
        product.run(part, a.col_range(begin, depth - begin), right, part, stream);
        break;
      }
    }
  }
}

}  // namespace qpipe::cuda
