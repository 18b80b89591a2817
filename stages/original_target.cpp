#include "stages/original_target.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/gptq_sweep.h"
#include "kernels/half_agreement.h"
#include "kernels/row_product.h"
#include "kernels/scaling.h"
#include "kernels/triangular_inverse.h"
#include "stages/transfer.h"

namespace qpipe {

namespace {

constexpr std::int64_t rows_asked = 512;   // of each weight, for α
constexpr std::int64_t rows_moved = 2048;  // at once

// Every so-manyth row of a weight, so many that at most rows_asked are.
ConstTensor some_rows(ConstTensor weight) {
  const std::int64_t step = (weight.rows + rows_asked - 1) / rows_asked;
  return {weight.data, weight.dtype, (weight.rows + step - 1) / step, weight.cols,
          weight.stride * step};
}

Array<std::uint8_t> none_dead(std::int64_t d, Stream& stream) {
  return upload(std::vector<std::uint8_t>(static_cast<std::size_t>(d)), stream);
}

// first ← (w C) N⁻ᵀ, columns in the order.   second: memory as first.
void whiten(Matrix<const float> w, Matrix<const float> c, Matrix<const float> inverse,
            const SolvedOrder& order, Matrix<float> first, Matrix<float> second, Stream& stream) {
  multiply_rows(w, c, RightFactor::plain, first, stream);
  gather_columns(first, order.perm, order.dead, second, stream);
  multiply_rows(second, inverse, RightFactor::upper_transposed, first, stream);
}

Array<std::int32_t> inverse_of(Matrix<const std::int32_t> perm, Stream& stream) {
  const std::vector<std::int32_t> order = download_matrix(perm, stream);
  std::vector<std::int32_t> inverse(order.size());
  for (std::size_t k = 0; k < order.size(); ++k)
    inverse[static_cast<std::size_t>(order[k])] = static_cast<std::int32_t>(k);
  return upload(inverse, stream);
}

std::int64_t rows_bytes(std::int64_t rows, std::int64_t d) {
  return static_cast<std::int64_t>(sizeof(float)) * rows * d;
}

std::int64_t whitening_bytes(Backend backend, std::int64_t rows, std::int64_t d) {
  return multiply_rows_workspace_bytes(backend, rows, d, d, RightFactor::upper_transposed);
}

}  // namespace

OriginalTarget original_target(const CrossMoments& moments, const std::vector<ConstTensor>& weights,
                               const SolvedOrder& order, Stream& stream) {
  const std::int64_t d = order.n.cols;
  std::int64_t rows = 0;
  for (const ConstTensor& weight : weights) rows += some_rows(weight).rows;
  const Array<float> w(rows, d, stream);
  std::int64_t begin = 0;
  for (const ConstTensor& weight : weights) {
    const ConstTensor some = some_rows(weight);
    convert(some, w.view.row_range(begin, some.rows), stream);
    begin += some.rows;
  }
  OriginalTarget target{Array<float>(d, d, stream), Array<float>(1, d, stream), {}};
  target.positions = inverse_of(order.perm, stream);
  invert_unit_upper(order.n, target.inverse, stream);
  const Array<float> turned(rows, d, stream);
  std::array<Array<float>, 2> halves;
  for (std::size_t h = 0; h < halves.size(); ++h) {
    halves[h] = Array<float>(rows, d, stream);
    whiten(w, moments.halves[h], target.inverse, order, halves[h], turned, stream);
  }
  half_agreement(halves[0], halves[1], target.factor, stream);
  std::vector<float> factor = download_matrix(Matrix<const float>(target.factor.view), stream);
  const std::vector<float> pivot = download_matrix(order.pivot, stream);
  target.agreement = std::accumulate(factor.begin(), factor.end(), 0.0) / static_cast<double>(d);
  for (std::size_t k = 0; k < factor.size(); ++k) factor[k] /= pivot[k] * pivot[k];
  copy_to_device(target.factor.view.data, factor.data(), target.factor.memory.bytes(), stream);
  return target;
}

void move_to_target(const OriginalTarget& target, Matrix<const float> c, const SolvedOrder& order,
                    Matrix<float> w, Stream& stream) {
  const std::int64_t d = w.cols;
  const std::int64_t most = std::min(rows_moved, w.rows);
  const std::array<Array<float>, 2> memory{Array<float>(most, d, stream),
                                           Array<float>(most, d, stream)};
  const Array<std::uint8_t> alive = none_dead(d, stream);
  for (std::int64_t begin = 0; begin < w.rows; begin += most) {
    const Matrix<float> rows = w.row_range(begin, std::min(most, w.rows - begin));
    const Matrix<float> first = memory[0].view.row_range(0, rows.rows);
    const Matrix<float> second = memory[1].view.row_range(0, rows.rows);
    whiten(rows, c, target.inverse, order, first, second, stream);
    scale_weight(first, target.factor, {}, first, stream);
    multiply_rows(first, target.inverse, RightFactor::upper, second, stream);
    gather_columns(second, target.positions, alive, first, stream);
    add_scaled(first, 1.0f, rows, stream);
  }
}

std::int64_t target_bytes(std::int64_t d) {
  return static_cast<std::int64_t>(sizeof(float)) * (d * d + 2 * d);
}

std::int64_t target_workspace_bytes(Backend backend,
                                    const std::vector<std::int64_t>& rows_of_weights,
                                    std::int64_t d) {
  std::int64_t rows = 0;
  for (const std::int64_t all : rows_of_weights)
    rows += some_rows({nullptr, DType::f32, all, d}).rows;
  return std::max(inverse_workspace_bytes(backend, d) + rows_bytes(rows, d),
                  4 * rows_bytes(rows, d) + whitening_bytes(backend, rows, d));
}

std::int64_t move_workspace_bytes(Backend backend, std::int64_t rows, std::int64_t d) {
  const std::int64_t most = std::min(rows_moved, rows);
  return 2 * rows_bytes(most, d) + whitening_bytes(backend, most, d);
}

}  // namespace qpipe
