// GPTQ's column sweep: the codes of some rows of one linear, given the factor N of its Hessian
// (kernels/factor.h).
#pragma once

#include <algorithm>

#include "kernels/quantize_groups.h"

namespace qpipe {

struct SweepOptions {
  GridOptions grid;
  std::int64_t group_size = 128;  // divides cols; = cols for one group per row
  bool static_grids = false;      // scale and zero are inputs; column c belongs to group_of[c]
  bool weighted_search = false;   // the search of grids counts errors times pivot² of their
                                  // columns, as the loss does
};

// q_k = Q(w_k + Σ_{j<k} (w_j − q_j) N_jk), columns in the order given (the caller has permuted w
// and N). Dynamic grids: group k / group_size. The grids of a unit of columns (a group, or as many
// small groups as fit 128 columns) are found when its first column is reached, from the weights u
// that GPTQ's textbook form holds then, the error so far spread over all columns left: u_j = v_j +
// Σ_{i<j in the unit} (w_i − u_i) N_ij with v_j compensated for the columns before the unit. This
// is what GPTQModel does too. (From v itself the grids are worse: up to 25 % in layer loss at 2
// bits.) One group per row uses the original w. w [rows, d] float32, unchanged; n [d, d], pivot [1,
// d]; group_of [1, d] (used when static_grids; may be empty otherwise); scale, zero [rows, groups]
// in or out; code [rows, d] out; loss [1, rows] out: Σ_k pivot_k² (v_k − q_k)² per row. The result
// of a row does not depend on which other rows are in the call: rows can be shared over ranks at
// will.
void gptq_sweep(Matrix<const float> w, Matrix<const float> n, Matrix<const float> pivot,
                const SweepOptions& options, Matrix<const std::int32_t> group_of,
                Matrix<float> scale, Matrix<std::uint8_t> zero, Matrix<std::uint8_t> code,
                Matrix<float> loss, Stream& stream);

// out[r, k] = w[r, perm[k]] in float32, 0 where the column is dead (dead[0, perm[k]] ≠ 0).  w
// [rows, d] of any float type; perm [1, d], dead [1, d] on the device.
void gather_columns(ConstTensor w, Matrix<const std::int32_t> perm, Matrix<const std::uint8_t> dead,
                    Matrix<float> out, Stream& stream);

// out[r, perm[k]] = code[r, k]: back to the original order.
void scatter_columns(Matrix<const std::uint8_t> code, Matrix<const std::int32_t> perm,
                     Matrix<std::uint8_t> out, Stream& stream);

// Columns that are rounded one after the other before their errors go on to others.
inline constexpr std::int64_t sweep_block_columns = 128;

// Columns whose dynamic grids are found together.
constexpr std::int64_t grid_unit(std::int64_t group_size) {
  return group_size < sweep_block_columns ? sweep_block_columns / group_size * group_size
                                          : group_size;
}

// Columns, whole units, whose errors go on to all columns behind them in one product.
constexpr std::int64_t sweep_panel(std::int64_t unit) {
  return unit > 512 ? unit : 512 / unit * unit;
}

namespace cuda {
// How the columns and rows of a sweep are cut.
struct SweepPlan {
  bool given = false;  // grids are inputs, or of whole rows, found before
  bool fused = false;  // a block holds whole chunks of whole groups and finds their grids itself;
                       // else those of a unit are found apart
  std::int64_t unit = 0;   // columns
  std::int64_t panel = 0;  // columns
  std::int64_t turn = 0;   // rows at once: 512 MiB of values
};

constexpr SweepPlan plan_sweep(std::int64_t rows, std::int64_t d, std::int64_t group_size,
                               bool static_grids) {
  SweepPlan plan;
  plan.given = static_grids || group_size == d;
  plan.fused = !plan.given && (group_size == 32 || group_size == 64 || group_size == 128);
  plan.unit = plan.given ? sweep_block_columns : std::min(d, grid_unit(group_size));
  plan.panel = std::min(d, sweep_panel(plan.unit));
  plan.turn = std::min(rows, std::max<std::int64_t>(2048, (std::int64_t{1} << 27) / d / 128 * 128));
  return plan;
}

decltype(qpipe::gptq_sweep) gptq_sweep;
decltype(qpipe::gather_columns) gather_columns;
decltype(qpipe::scatter_columns) scatter_columns;
}  // namespace cuda

}  // namespace qpipe
