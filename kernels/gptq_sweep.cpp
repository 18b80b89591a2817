#include "kernels/gptq_sweep.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels/grid.h"

namespace qpipe {

namespace {

// Rows are solved 32 at a time, transposed: element (k, r) of a block of rows is data[32·k + r],
// and every operation does the same to all 32 lanes. So a row's bits depend neither on its lane nor
// on its neighbours, which a BLAS with edge kernels does not promise.
constexpr std::int64_t lanes = 32;
constexpr int parts = 4;
using Part = float __attribute__((vector_size(32), aligned(4), may_alias));  // 8 lanes

// v[j] += Σ_k e[k] · n[k, j] for `columns` consecutive j; sums run in ascending k.
template <int columns>
[[gnu::always_inline]] inline void add_products(const float* e, const float* n,
                                                std::int64_t n_stride, std::int64_t depth,
                                                float* v) {
  Part sum[columns][parts];
#pragma GCC unroll 4
  for (int c = 0; c < columns; ++c)
#pragma GCC unroll 4
    for (int p = 0; p < parts; ++p)
      sum[c][p] = *reinterpret_cast<const Part*>(v + c * lanes + p * 8);
  for (std::int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 4
    for (int p = 0; p < parts; ++p) {
      const Part factor = *reinterpret_cast<const Part*>(e + k * lanes + p * 8);
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) sum[c][p] += factor * n[k * n_stride + c];
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < columns; ++c)
#pragma GCC unroll 4
    for (int p = 0; p < parts; ++p) *reinterpret_cast<Part*>(v + c * lanes + p * 8) = sum[c][p];
}

// v[j] += Σ_k e[k] · n[k, j], k < depth, j < columns.
QPIPE_SIMD_CLONES void multiply_add(const float* e, const float* n, std::int64_t n_stride,
                                    std::int64_t depth, std::int64_t columns, float* v) {
  constexpr std::int64_t depth_step = 128;  // e and the columns of n in use stay in cache
  for (std::int64_t k = 0; k < depth; k += depth_step) {
    const std::int64_t count = std::min(depth_step, depth - k);
    const float* n_part = n + k * n_stride;
    std::int64_t j = 0;
    for (; j + 2 <= columns; j += 2)
      add_products<2>(e + k * lanes, n_part + j, n_stride, count, v + j * lanes);
    if (j < columns) add_products<1>(e + k * lanes, n_part + j, n_stride, count, v + j * lanes);
  }
}

// v[j] += e · n[j] for begin ≤ j < end.
[[gnu::always_inline]] inline void add_column(const float* e, const float* n, std::int64_t begin,
                                              std::int64_t end, float* v) {
  Part error[parts];
#pragma GCC unroll 4
  for (int p = 0; p < parts; ++p) error[p] = *reinterpret_cast<const Part*>(e + p * 8);
  for (std::int64_t j = begin; j < end; ++j)
#pragma GCC unroll 4
    for (int p = 0; p < parts; ++p)
      *reinterpret_cast<Part*>(v + j * lanes + p * 8) += error[p] * n[j];
}

// The sweep inside one block of columns. group[k] selects the 32 scales and zeros of column k.
QPIPE_SIMD_CLONES void sweep_block(const float* w, float* v, const float* n, std::int64_t n_stride,
                                   const float* pivot, const std::int32_t* group,
                                   const float* scale, const float* zero, float max_code,
                                   std::int64_t columns, float* e, std::uint8_t* code,
                                   float* loss) {
  float block_loss[lanes] = {};
  for (std::int64_t k = 0; k < columns; ++k) {
    const float* column_scale = scale + group[k] * lanes;
    const float* column_zero = zero + group[k] * lanes;
    const float weight = pivot[k] * pivot[k];
    float* column_error = e + k * lanes;
    const float* column_v = v + k * lanes;
#pragma omp simd
    for (std::int64_t r = 0; r < lanes; ++r) {
      const float chosen = nearest_code(column_v[r], column_scale[r], column_zero[r], max_code);
      const float q = column_scale[r] * (chosen - column_zero[r]);
      const float miss = column_v[r] - q;
      column_error[r] = w[k * lanes + r] - q;
      block_loss[r] += weight * (miss * miss);
      code[k * lanes + r] = static_cast<std::uint8_t>(static_cast<std::int32_t>(chosen));
    }
    add_column(column_error, n + k * n_stride, k + 1, columns, v);
  }
  for (std::int64_t r = 0; r < lanes; ++r) loss[r] += block_loss[r];
}

// v → u of gptq_sweep.h over `columns` columns: u_j = v_j + Σ_{i<j} (w_i − u_i) N_ij, the sweep
// without rounding. u holds v on entry.
QPIPE_SIMD_CLONES void spread_error(const float* w, float* u, const float* n, std::int64_t n_stride,
                                    std::int64_t columns) {
  for (std::int64_t k0 = 0; k0 < columns; k0 += sweep_block_columns) {
    const std::int64_t k1 = std::min(columns, k0 + sweep_block_columns);
    float e[sweep_block_columns * lanes];
    for (std::int64_t k = k0; k < k1; ++k) {
      float* column_error = e + (k - k0) * lanes;
#pragma omp simd
      for (std::int64_t r = 0; r < lanes; ++r)
        column_error[r] = w[k * lanes + r] - u[k * lanes + r];
      add_column(column_error, n + k * n_stride, k + 1, k1, u);
    }
    for (std::int64_t j = k1; j < columns; ++j)
      add_products<1>(e, n + k0 * n_stride + j, n_stride, k1 - k0, u + j * lanes);
  }
}

// What every block of rows shares.
struct Sweep {
  Matrix<const float> n;
  Matrix<const float> pivot;
  SweepOptions options;
  std::vector<std::int32_t> group_of;
  std::vector<float> search_weight;         // of each column; empty: ones
  std::int64_t unit = sweep_block_columns;  // columns whose grids are found together: whole groups
  std::int64_t panel = sweep_panel(sweep_block_columns);
  bool grids_given = false;  // static, or one group per row: found before the sweep
};

// Scratch of one thread, in floats per lane (bytes for code).
struct Scratch {
  std::vector<float> w, v, u, e, scale, zero, group;
  std::vector<std::uint8_t> code;
};

// Grids of the groups of the unit of `columns` columns from `begin` on, which is at `offset` in the
// panel. Absent rows keep theirs.
void find_unit_grids(const Sweep& sweep, std::int64_t begin, std::int64_t columns,
                     std::int64_t offset, std::int64_t rows, Scratch& scratch) {
  const std::int64_t group_size = sweep.options.group_size;
  const auto from = scratch.v.begin() + offset * lanes;
  scratch.u.assign(from, from + columns * lanes);
  spread_error(scratch.w.data() + offset * lanes, scratch.u.data(), sweep.n.row(begin) + begin,
               sweep.n.stride, columns);
  std::vector<float>& group = scratch.group;
  group.resize(static_cast<std::size_t>(group_size));
  for (std::int64_t first = 0; first < columns; first += group_size)
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < group_size; ++c) group[c] = scratch.u[(first + c) * lanes + r];
      const Grid grid =
          find_grid(group.data(), group_size, sweep.options.grid,
                    sweep.search_weight.empty() ? nullptr : &sweep.search_weight[begin + first]);
      scratch.scale[(begin + first) / group_size * lanes + r] = grid.scale;
      scratch.zero[(begin + first) / group_size * lanes + r] = grid.zero;
    }
}

void sweep_rows(const Sweep& sweep, Matrix<const float> w, Matrix<float> scale,
                Matrix<std::uint8_t> zero, Matrix<std::uint8_t> code, float* loss,
                Scratch& scratch) {
  const std::int64_t rows = w.rows;
  const std::int64_t d = w.cols;
  const std::int64_t groups = scale.cols;
  const auto lane_floats = [](std::int64_t count) { return count * lanes; };
  scratch.w.assign(lane_floats(sweep.panel), 0.0f);
  scratch.v.resize(lane_floats(sweep.panel));
  scratch.e.resize(lane_floats(d));
  scratch.code.resize(lane_floats(sweep.panel));
  scratch.scale.assign(lane_floats(groups), 1.0f);
  scratch.zero.assign(lane_floats(groups), 0.0f);
  float lane_loss[lanes] = {};
  if (sweep.grids_given)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t g = 0; g < groups; ++g) {
        scratch.scale[lane_floats(g) + r] = scale(r, g);
        scratch.zero[lane_floats(g) + r] = zero(r, g);
      }

  for (std::int64_t p0 = 0; p0 < d; p0 += sweep.panel) {
    const std::int64_t p1 = std::min(d, p0 + sweep.panel);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = p0; c < p1; ++c) scratch.w[lane_floats(c - p0) + r] = w(r, c);
    scratch.v = scratch.w;
    multiply_add(scratch.e.data(), sweep.n.data + p0, sweep.n.stride, p0, p1 - p0,
                 scratch.v.data());

    for (std::int64_t b0 = p0; b0 < p1;) {
      std::int64_t b1 = std::min(p1, b0 + sweep_block_columns);
      if (!sweep.grids_given) {
        const std::int64_t unit_begin = b0 / sweep.unit * sweep.unit;
        const std::int64_t unit_end = std::min(d, unit_begin + sweep.unit);
        b1 = std::min(b1, unit_end);
        if (b0 == unit_begin) find_unit_grids(sweep, b0, unit_end - b0, b0 - p0, rows, scratch);
      }
      const std::size_t at = lane_floats(b0 - p0);
      float* e = scratch.e.data() + lane_floats(b0);
      sweep_block(scratch.w.data() + at, scratch.v.data() + at, sweep.n.row(b0) + b0,
                  sweep.n.stride, sweep.pivot.data + b0, sweep.group_of.data() + b0,
                  scratch.scale.data(), scratch.zero.data(), largest_code(sweep.options.grid.bits),
                  b1 - b0, e, scratch.code.data() + at, lane_loss);
      multiply_add(e, sweep.n.row(b0) + b1, sweep.n.stride, b1 - b0, p1 - b1,
                   scratch.v.data() + lane_floats(b1 - p0));
      b0 = b1;
    }
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = p0; c < p1; ++c) code(r, c) = scratch.code[lane_floats(c - p0) + r];
  }

  for (std::int64_t r = 0; r < rows; ++r) loss[r] = lane_loss[r];
  if (!sweep.grids_given)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t g = 0; g < groups; ++g) {
        scale(r, g) = scratch.scale[lane_floats(g) + r];
        zero(r, g) = static_cast<std::uint8_t>(scratch.zero[lane_floats(g) + r]);
      }
}

template <class T>
void gather_as(Matrix<const T> w, Matrix<const std::int32_t> perm, Matrix<const std::uint8_t> dead,
               Matrix<float> out) {
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < out.rows; ++r)
    for (std::int64_t k = 0; k < out.cols; ++k) {
      const std::int32_t from = perm(0, k);
      out(r, k) = dead(0, from) != 0 ? 0.0f : to_float(w(r, from));
    }
}

}  // namespace

void gptq_sweep(Matrix<const float> w, Matrix<const float> n, Matrix<const float> pivot,
                const SweepOptions& options, Matrix<const std::int32_t> group_of,
                Matrix<float> scale, Matrix<std::uint8_t> zero, Matrix<std::uint8_t> code,
                Matrix<float> loss, Stream& stream) {
  const std::int64_t d = w.cols;
  const std::int64_t group_size = options.group_size;
  check_bits(options.grid.bits);
  require(group_size > 0 && d % group_size == 0,
          "gptq_sweep: group_size must divide the number of columns");
  require(n.rows == d && n.cols == d && pivot.cols == d,
          "gptq_sweep: n must be [d, d] and pivot [1, d]");
  require(!options.static_grids || group_of.cols == d,
          "gptq_sweep: static grids need group_of [1, d]");
  require(scale.rows == w.rows && zero.rows == w.rows && scale.cols == d / group_size &&
              zero.cols == scale.cols,
          "gptq_sweep: scale and zero must be [rows, groups]");
  require(code.rows == w.rows && code.cols == d && loss.cols == w.rows,
          "gptq_sweep: code must be [rows, d] and loss [1, rows]");
  if (w.rows == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::gptq_sweep(w, n, pivot, options, group_of, scale, zero, code, loss, stream);

  Sweep sweep;
  sweep.n = n;
  sweep.pivot = pivot;
  sweep.options = options;
  sweep.group_of.resize(static_cast<std::size_t>(d));
  sweep.grids_given = options.static_grids;
  for (std::int64_t k = 0; k < d; ++k)
    sweep.group_of[static_cast<std::size_t>(k)] =
        options.static_grids ? group_of(0, k) : static_cast<std::int32_t>(k / group_size);
  if (options.weighted_search)
    for (std::int64_t k = 0; k < d; ++k) sweep.search_weight.push_back(pivot(0, k) * pivot(0, k));
  if (!options.static_grids && group_size == d) {
    const Matrix<const float> weight = options.weighted_search
                                           ? Matrix<const float>(sweep.search_weight.data(), 1, d)
                                           : Matrix<const float>();
    find_weighted_grids(w, group_size, options.grid, weight, scale, zero, stream);
    sweep.grids_given = true;
  }
  if (!sweep.grids_given) {
    // A unit must not cross the end of a panel: its grids need all of its columns compensated.
    sweep.unit = grid_unit(group_size);
    sweep.panel = sweep_panel(sweep.unit);
  }

  const std::int64_t row_blocks = (w.rows + lanes - 1) / lanes;
  std::vector<Scratch> scratch(static_cast<std::size_t>(omp_get_max_threads()));
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t block = 0; block < row_blocks; ++block) {
    const std::int64_t r0 = block * lanes;
    const std::int64_t count = std::min(lanes, w.rows - r0);
    sweep_rows(sweep, w.row_range(r0, count), scale.row_range(r0, count), zero.row_range(r0, count),
               code.row_range(r0, count), loss.data + r0,
               scratch[static_cast<std::size_t>(omp_get_thread_num())]);
  }
}

void gather_columns(ConstTensor w, Matrix<const std::int32_t> perm, Matrix<const std::uint8_t> dead,
                    Matrix<float> out, Stream& stream) {
  require(out.rows == w.rows && out.cols == w.cols && perm.cols == w.cols && dead.cols == w.cols,
          "gather_columns: out must have the shape of w, perm and dead must be [1, d]");
  require(w.dtype == DType::f32 || w.dtype == DType::f16 || w.dtype == DType::bf16,
          "gather_columns: w must be f32, f16 or bf16");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::gather_columns(w, perm, dead, out, stream);
  switch (w.dtype) {
    case DType::f16: return gather_as(w.as<const f16>(), perm, dead, out);
    case DType::bf16: return gather_as(w.as<const bf16>(), perm, dead, out);
    default: return gather_as(w.as<const float>(), perm, dead, out);
  }
}

void scatter_columns(Matrix<const std::uint8_t> code, Matrix<const std::int32_t> perm,
                     Matrix<std::uint8_t> out, Stream& stream) {
  require(out.rows == code.rows && out.cols == code.cols && perm.cols == code.cols,
          "scatter_columns: out must have the shape of code, perm must be [1, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::scatter_columns(code, perm, out, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < code.rows; ++r)
    for (std::int64_t k = 0; k < code.cols; ++k) out(r, perm(0, k)) = code(r, k);
}

}  // namespace qpipe
