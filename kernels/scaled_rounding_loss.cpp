#include "kernels/scaled_rounding_loss.h"

#include <algorithm>

#include "kernels/grid.h"
#include "kernels/scaled_rounding.h"
#include "kernels/weights.h"

namespace qpipe {

void scaled_rounding_losses(ConstTensor w, Matrix<const float> s, std::int64_t group_size,
                            const GridOptions& grid, const GramMatrix& h, std::int64_t row_block,
                            Matrix<double> loss, Stream& stream) {
  const std::int64_t d = w.cols;
  check_bits(grid.bits);
  require_weights(w.dtype, "scaled_rounding_losses: w must be f32, f16 or bf16");
  require(grid.mse_norm == 0.0f, "scaled_rounding_losses: no search of the grid here");
  require(group_size > 0 && d % group_size == 0,
          "scaled_rounding_losses: group_size must divide the number of columns");
  require(s.cols == d, "scaled_rounding_losses: s must be [n, d]");
  require(h.values.rows == d && h.values.cols == d, "scaled_rounding_losses: h must be [d, d]");
  require(row_block > 0 && loss.rows == (w.rows + row_block - 1) / row_block && loss.cols == s.rows,
          "scaled_rounding_losses: loss must be [blocks, n]");
  if (loss.size() == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::scaled_rounding_losses(w, s, group_size, grid, h, row_block, loss, stream);
  const Array<float> rounded(std::min(row_block, w.rows), d, stream);
  for (std::int64_t b = 0; b < loss.rows; ++b) {
    const ConstTensor block =
        w.row_range(b * row_block, std::min(row_block, w.rows - b * row_block));
    const Matrix<float> q = rounded.view.row_range(0, block.rows);
    for (std::int64_t c = 0; c < s.rows; ++c) {
      scaled_rounding(block, s.row_range(c, 1), group_size, grid, q, stream);
      gram_loss(block, q, h, {&loss(b, c), 1, 1}, stream);
    }
  }
}

}  // namespace qpipe
