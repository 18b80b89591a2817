#include "stages/solve.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/activation.h"
#include "kernels/alignment.h"
#include "kernels/diagonal.h"
#include "kernels/gptq_sweep.h"
#include "kernels/quantize_groups.h"
#include "kernels/row_product.h"
#include "launch/share.h"
#include "stages/column_order.h"
#include "stages/factor_team.h"
#include "stages/original_target.h"
#include "stages/transfer.h"

namespace qpipe {

namespace {

using Order = std::vector<std::int32_t>;

Order identity_order(std::int64_t d) {
  Order order(static_cast<std::size_t>(d));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// perm[k] = the column solved at position k.
Order column_order(const LinearSettings& settings, const std::vector<float>& diagonal) {
  const auto d = static_cast<std::int64_t>(diagonal.size());
  if (settings.desc_act) return act_order(diagonal);
  if (settings.act_group_aware && settings.groups(d) >= 1)
    return group_aware_order(diagonal, settings.group_columns(d));
  return identity_order(d);
}

// N and the pivots for one column order (kernels/factor.h), on every rank.
struct Factor {
  Order order;
  Array<std::int32_t> perm;  // the same on the device
  Array<float> n;
  Array<float> pivot;
  double damp = 0.0;
  bool fell_back = false;
  OriginalTarget target;  // empty without cross moments
};

SolvedOrder solved_order(const Factor& factor, Matrix<const std::uint8_t> dead) {
  return {factor.n, factor.pivot, factor.perm, dead};
}

// Raises the damping until the factorisation succeeds; without success leaves N = I, which makes
// the sweep round to nearest. All ranks of the team call it and come to the same.
void factor_with_damping(const Hessian& hessian, const LinearSettings& settings,
                         const FactorTeam& team, Factor& result, Stream& stream) {
  const auto d = static_cast<std::int64_t>(hessian.diagonal.size());
  double sum = 0.0;
  for (const float h : hessian.diagonal) sum += h;
  const double mean = sum / static_cast<double>(d);
  for (double damp = settings.damp_percent; damp < 1.0; damp += settings.damp_increment) {
    result.damp = damp;
    if (hessian.matrix
            .empty()) {  // permuted into n on its way from the host, and factored in place
      place_hessian(hessian, result.perm, result.n, stream);
      if (factor(result.n.view, upload(identity_order(d), stream), damp * mean, result.n,
                 result.pivot, team, stream))
        return;
    } else if (factor(hessian.matrix, result.perm, damp * mean, result.n, result.pivot, team,
                      stream)) {
      return;
    }
  }
  result.fell_back = true;
  std::vector<float> pivot(static_cast<std::size_t>(d));
  set_identity(result.n, stream);
  for (std::size_t k = 0; k < pivot.size(); ++k)
    pivot[k] =
        std::sqrt(std::max(0.0f, hessian.diagonal[static_cast<std::size_t>(result.order[k])]));
  copy_to_device(result.pivot.view.data, pivot.data(), pivot.size() * sizeof(float), stream);
}

// Linears with the same order and damping share a factor.
using FactorKey =
    std::tuple<bool, std::int64_t, double,
               double>;  // desc_act, group columns of act_group_aware (0: none), damping

FactorKey factor_key(const LinearSettings& s, std::int64_t d) {
  return {s.desc_act, s.act_group_aware && !s.desc_act ? s.group_columns(d) : 0, s.damp_percent,
          s.damp_increment};
}

using Factors = std::map<FactorKey, Factor>;

Factors make_factors(const Hessian& hessian, const std::vector<LinearSettings>& settings,
                     Comm& comm, Stream& stream) {
  const auto d = static_cast<std::int64_t>(hessian.diagonal.size());
  std::map<FactorKey, const LinearSettings*> wanted;
  for (const LinearSettings& s : settings)
    if (s.method == Method::gptq) wanted.emplace(factor_key(s, d), &s);

  const bool in_team =
      stream.on_cuda() && factors_in_team(static_cast<std::int64_t>(wanted.size()), d, comm.size());
  const FactorTeam team = in_team ? factor_team(comm, stream) : FactorTeam();
  Factors factors;
  const std::vector<int> owners =
      share_by_cost(std::vector<double>(wanted.size(), 1.0), comm.size());
  std::size_t task = 0;
  for (const auto& [key, s] : wanted) {
    Factor& result = factors[key];
    result.order = column_order(*s, hessian.diagonal);
    result.perm = upload(result.order, stream);
    result.n = Array<float>(d, d, stream);
    result.pivot = Array<float>(1, d, stream);
    if (in_team || owners[task] == comm.rank())
      factor_with_damping(hessian, *s, team, result, stream);
    ++task;
  }
  if (in_team) return factors;
  task = 0;
  for (auto& [key, result] : factors) {
    const int owner = owners[task++];
    comm.broadcast(result.n.view.data, result.n.memory.bytes(), owner, stream);
    comm.broadcast(result.pivot.view.data, result.pivot.memory.bytes(), owner, stream);
    const auto outcome = comm.all_gather({result.damp, result.fell_back ? 1.0 : 0.0});
    result.damp = outcome[static_cast<std::size_t>(2 * owner)];
    result.fell_back = outcome[static_cast<std::size_t>(2 * owner + 1)] != 0.0;
  }
  return factors;
}

// What each factor's linears aim at, where the group has cross moments. Every rank comes to the
// same.
void set_targets(const CrossMoments& moments, const std::vector<const Linear*>& linears,
                 const std::vector<LinearSettings>& settings, Matrix<const std::uint8_t> dead,
                 Factors& factors, Stream& stream) {
  for (auto& [key, factor] : factors) {
    if (factor.fell_back) continue;
    std::vector<ConstTensor> weights;
    for (std::size_t i = 0; i < linears.size(); ++i)
      if (settings[i].method == Method::gptq &&
          factor_key(settings[i], linears[i]->stored.cols) == key)
        weights.push_back(linears[i]->stored);
    factor.target = original_target(moments, weights, solved_order(factor, dead), stream);
  }
}

// weight: the given rows.
void solve_rtn(ConstTensor weight, const RowRange& rows, QuantizedLinear& q, Stream& stream) {
  const std::int64_t in = weight.cols;
  const Array<float> w(rows.count, in, stream);
  convert(weight, w.view, stream);
  const auto scale = q.scale.view.row_range(rows.begin, rows.count);
  const auto zero = q.zero.view.row_range(rows.begin, rows.count);
  find_grids(w, q.settings.group_columns(in),
             {q.settings.bits, q.settings.symmetric, q.settings.mse_norm}, scale, zero, stream);
  round_to_grid(w, scale, zero, upload(q.group_of, stream), q.settings.bits,
                q.code.view.row_range(rows.begin, rows.count), stream);
}

// Some rows of one of the step's linears, and their first row in a matrix of all rows of all
// linears.
struct RowsOfLinear {
  std::size_t linear = 0;
  RowRange rows;
  std::int64_t position = 0;
};

// Whether one sweep can solve rows of both: a sweep takes about as long for few rows as for many.
bool swept_together(const LinearSettings& a, const LinearSettings& b, std::int64_t d) {
  const auto grids = [&](const LinearSettings& s) {
    return std::tuple(s.method, s.bits, s.symmetric, s.mse_norm, s.weighted_search,
                      s.group_columns(d), s.static_groups);
  };
  return a.method == Method::gptq && grids(a) == grids(b) && factor_key(a, d) == factor_key(b, d);
}

static_assert(solved_row_block % product_row_block == 0);

// This rank's rows, cut into what is solved at once.
std::vector<std::vector<RowsOfLinear>> cut_turns(const std::vector<const Linear*>& linears,
                                                 const std::vector<LinearSettings>& settings,
                                                 const std::vector<std::vector<RowRange>>& shares,
                                                 int rank) {
  std::vector<std::vector<RowsOfLinear>> turns;
  std::int64_t space = 0;  // rows that the last turn still takes
  std::int64_t position = 0;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    const std::int64_t in = linears[i]->stored.cols;
    if (i > 0 && !swept_together(settings[i - 1], settings[i], in)) space = 0;
    const RowRange& mine = shares[i][static_cast<std::size_t>(rank)];
    for (std::int64_t done = 0; done < mine.count;) {
      if (space == 0) {
        turns.emplace_back();
        space = rows_solved_at_once(in);
      }
      const RowRange rows{mine.begin + done, std::min(mine.count - done, space)};
      turns.back().push_back({i, rows, position + rows.begin});
      done += rows.count;
      // Whole blocks, so that every piece begins with one.
      space -= (rows.count + solved_row_block - 1) / solved_row_block * solved_row_block;
    }
    position += linears[i]->stored.rows;
  }
  return turns;
}

// A step's linears, and which rows of each are whose.
struct StepRows {
  const std::vector<const Linear*>& linears;
  const std::vector<LinearSettings>& settings;
  const RowsOf& weights;      // empty: the checkpoint's
  Matrix<const float> cross;  // C, where linears aim at the original's output; or empty
  std::vector<std::int64_t> rows;
  std::vector<std::vector<RowRange>> shares;
};

// A piece's weights as they are to be quantized: the checkpoint's, or others of their own.
struct Weights {
  Array<float> own;
  ConstTensor view;
};

Weights weights_of(const StepRows& step, const RowsOfLinear& piece) {
  if (!step.weights)
    return {{}, step.linears[piece.linear]->stored.row_range(piece.rows.begin, piece.rows.count)};
  Array<float> own = step.weights(piece.linear, piece.rows);
  const ConstTensor view = own.view;
  return {std::move(own), view};
}

// The same, moved to what the piece's linear aims at.
Weights target_of(const StepRows& step, const RowsOfLinear& piece, const Factor& factor,
                  Matrix<const std::uint8_t> dead, Stream& stream) {
  Weights weights = weights_of(step, piece);
  if (factor.target.factor.empty()) return weights;
  const std::int64_t in = weights.view.cols;
  Array<float> moved(weights.view.rows, in, stream);
  convert(weights.view, moved.view, stream);
  move_to_target(factor.target, step.cross, solved_order(factor, dead), moved, stream);
  const ConstTensor view = moved.view;
  return {std::move(moved), view};
}

Array<float> squared_pivots_as_stored(const Factor& factor, Stream& stream) {
  const std::vector<float> pivot = download_matrix(Matrix<const float>(factor.pivot.view), stream);
  std::vector<float> squares(pivot.size());
  for (std::size_t k = 0; k < pivot.size(); ++k)
    squares[static_cast<std::size_t>(factor.order[k])] = pivot[k] * pivot[k];
  return upload(squares, stream);
}

// The pieces' linears have one factor and the same settings. dead [1, d]: columns without input.
// row_loss: of all rows of all linears.
void solve_gptq(const StepRows& step, const Factor& factor, const std::vector<RowsOfLinear>& pieces,
                Matrix<const std::uint8_t> dead, std::vector<QuantizedLinear>& results,
                Matrix<float> row_loss, Stream& stream) {
  const QuantizedLinear& first = results[pieces.front().linear];
  const LinearSettings& s = first.settings;
  const std::int64_t in = first.code.view.cols;
  std::int64_t rows = 0;
  for (const RowsOfLinear& piece : pieces) rows += piece.rows.count;

  SweepOptions options;
  options.grid = {s.bits, s.symmetric, s.mse_norm};
  options.group_size = s.group_columns(in);
  options.static_grids = s.static_groups;
  options.weighted_search = s.weighted_search;
  Array<float> w(rows, in, stream);
  Array<float> scale(rows, s.groups(in), stream);
  Array<std::uint8_t> zero(rows, s.groups(in), stream);
  Array<std::int32_t> identity;
  Array<std::int32_t> solved_group;  // group of position k
  Array<float> weight;               // of the columns as stored, in the search of static grids
  if (s.static_groups) {
    Order group(static_cast<std::size_t>(in));
    for (std::size_t k = 0; k < group.size(); ++k)
      group[k] = first.group_of[static_cast<std::size_t>(factor.order[k])];
    solved_group = upload(group, stream);
    identity = upload(identity_order(in), stream);
    if (s.weighted_search) weight = squared_pivots_as_stored(factor, stream);
  }
  std::int64_t begin = 0;
  for (const RowsOfLinear& piece : pieces) {
    const Matrix<float> part = w.view.row_range(begin, piece.rows.count);
    const Weights weights = target_of(step, piece, factor, dead, stream);
    if (s.static_groups) {
      gather_columns(weights.view, identity, dead, part, stream);
      find_weighted_grids(part, options.group_size, options.grid, weight,
                          scale.view.row_range(begin, part.rows),
                          zero.view.row_range(begin, part.rows), stream);
    }
    gather_columns(weights.view, factor.perm, dead, part, stream);
    begin += part.rows;
  }
  Array<std::uint8_t> code(rows, in, stream);
  gptq_sweep(w, factor.n, factor.pivot, options, solved_group, scale, zero, code,
             row_loss.col_range(pieces.front().position, rows), stream);
  begin = 0;
  for (const RowsOfLinear& piece : pieces) {
    QuantizedLinear& q = results[piece.linear];
    const auto copy_rows = [&](const auto& from, const auto& to) {
      copy_on_device(to.row(piece.rows.begin), from.row(begin),
                     static_cast<std::size_t>(piece.rows.count * to.cols) * sizeof(*to.data),
                     stream);
    };
    scatter_columns(code.view.row_range(begin, piece.rows.count), factor.perm,
                    q.code.view.row_range(piece.rows.begin, piece.rows.count), stream);
    copy_rows(scale.view, q.scale.view);
    copy_rows(zero.view, q.zero.view);
    begin += piece.rows.count;
  }
}

// Column → group as solved, once the columns have been solved in the order `perm` with dynamic
// groups.
void set_dynamic_groups(const Order& perm, QuantizedLinear& q) {
  const auto in = static_cast<std::int64_t>(perm.size());
  const std::int64_t columns = q.settings.group_columns(in);
  for (std::int64_t k = 0; k < in; ++k)
    q.group_of[static_cast<std::size_t>(perm[static_cast<std::size_t>(k)])] =
        static_cast<std::int32_t>(k / columns);
  if (!q.settings.act_group_aware || q.settings.desc_act) return;
  for (std::size_t g = 0; g < q.stored_group.size();
       ++g)  // groups stayed whole: the stored group is that of any of its columns
    q.stored_group[g] =
        static_cast<std::int32_t>(perm[g * static_cast<std::size_t>(columns)] / columns);
}

// Row i of a matrix of all rows of all linears belongs to the rank that solves it; a rank's rows
// stand together.
std::vector<RowRange> shares_of_all_rows(const std::vector<std::int64_t>& rows,
                                         const std::vector<std::vector<RowRange>>& shares,
                                         int ranks) {
  std::vector<RowRange> result(static_cast<std::size_t>(ranks));
  std::int64_t begin = 0;
  for (std::size_t rank = 0; rank < result.size(); ++rank) {
    result[rank].begin = begin;
    for (std::size_t i = 0; i < rows.size(); ++i) result[rank].count += shares[i][rank].count;
    begin += result[rank].count;
  }
  return result;
}

const Factor& factor_of(const Factors& factors, const StepRows& step, std::size_t i) {
  return factors.at(factor_key(step.settings[i], step.linears[i]->stored.cols));
}

// dead [1, d]: columns that no token has anything in.
Array<std::uint8_t> dead_columns(const Hessian& hessian, Stream& stream) {
  std::vector<std::uint8_t> columns(hessian.diagonal.size());
  for (std::size_t k = 0; k < columns.size(); ++k) columns[k] = hessian.diagonal[k] == 0.0f;
  return upload(columns, stream);
}

// This rank's rows, into their places in the results and in row_loss.
void solve_own_rows(const StepRows& step, const Factors& factors, Matrix<const std::uint8_t> dead,
                    int rank, std::vector<QuantizedLinear>& results, Matrix<float> row_loss,
                    Stream& stream) {
  for (const std::vector<RowsOfLinear>& pieces :
       cut_turns(step.linears, step.settings, step.shares, rank)) {
    const RowsOfLinear& first = pieces.front();
    switch (step.settings[first.linear].method) {
      case Method::gptq:
        solve_gptq(step, factor_of(factors, step, first.linear), pieces, dead, results, row_loss,
                   stream);
        break;
      case Method::rtn:
        solve_rtn(weights_of(step, first).view, first.rows, results[first.linear], stream);
        break;
    }
  }
}

// All ranks' rows to every rank.
void gather_rows(const StepRows& step, std::vector<QuantizedLinear>& results,
                 Matrix<float> row_loss, Comm& comm, Stream& stream) {
  std::vector<Piece> pieces;
  const auto add = [&](auto* data, std::int64_t cols, const std::vector<RowRange>& shares) {
    for (std::size_t rank = 0; rank < shares.size(); ++rank)
      pieces.push_back({data + shares[rank].begin * cols,
                        static_cast<std::size_t>(shares[rank].count * cols) * sizeof *data,
                        static_cast<int>(rank)});
  };
  add(row_loss.data, 1, shares_of_all_rows(step.rows, step.shares, comm.size()));
  for (std::size_t i = 0; i < results.size(); ++i) {
    add(results[i].code.view.data, results[i].code.view.cols, step.shares[i]);
    add(results[i].scale.view.data, results[i].scale.view.cols, step.shares[i]);
    add(results[i].zero.view.data, results[i].zero.view.cols, step.shares[i]);
  }
  comm.broadcast(pieces, stream);
}

// What the grids and the losses say of the results. Throws as solve().
void read_outcome(const StepRows& step, const Factors& factors, Matrix<const float> row_loss,
                  std::vector<QuantizedLinear>& results, Comm& comm, Stream& stream) {
  Array<std::int32_t> faults(1, 2 * static_cast<std::int64_t>(results.size()), stream);
  fill_zero(faults.view.data, faults.memory.bytes(), stream);
  for (std::size_t i = 0; i < results.size(); ++i)
    inspect_grids(results[i].scale, results[i].zero,
                  faults.view.col_range(2 * static_cast<std::int64_t>(i), 2), stream);
  comm.wait(stream);
  const std::vector<float> loss = download_matrix(row_loss, stream);
  const std::vector<std::int32_t> found = download_matrix(faults.view, stream);
  auto row = loss.begin();
  for (std::size_t i = 0; i < results.size(); ++i) {
    QuantizedLinear& q = results[i];
    if (found[2 * i] != 0)
      throw std::domain_error(step.linears[i]->name +
                              ": a weight is not finite or too large for a float16 scale; check "
                              "the checkpoint for damaged weights");
    q.has_zero_of_zero = found[2 * i + 1] != 0;
    const auto end = row + step.rows[i];
    if (q.settings.method == Method::gptq) {
      const Factor& factor = factor_of(factors, step, i);
      if (!q.settings.static_groups) set_dynamic_groups(factor.order, q);
      q.mean_squared_error = std::accumulate(row, end, 0.0) / static_cast<double>(step.rows[i]);
      q.damp = factor.damp;
      q.fell_back = factor.fell_back;
      if (!factor.target.factor.empty()) q.agreement = factor.target.agreement;
    }
    row = end;
  }
}

// With memory for what is found.
QuantizedLinear unsolved(const Linear& linear, const LinearSettings& settings, Stream& stream) {
  QuantizedLinear q = outline_of(linear, settings);
  const auto allocate = [&](auto& array) {
    array = std::remove_reference_t<decltype(array)>(array.view.rows, array.view.cols, stream);
  };
  allocate(q.code);
  allocate(q.scale);
  allocate(q.zero);
  return q;
}

}  // namespace

std::vector<QuantizedLinear> solve(Hessian* hessian, const std::vector<const Linear*>& linears,
                                   const std::vector<LinearSettings>& settings,
                                   const RowsOf& rows_of, Comm& comm, Stream& stream) {
  StepRows step{linears, settings, rows_of, {}, {}, {}};
  std::vector<QuantizedLinear> results;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    require(settings[i].method != Method::gptq || hessian != nullptr,
            "solve: GPTQ needs a Hessian");
    step.rows.push_back(linears[i]->stored.rows);
  }
  step.shares = share_rows(step.rows, solved_row_block, comm.size());

  Factors factors;
  Array<std::uint8_t> dead;
  if (hessian != nullptr) {
    factors = make_factors(*hessian, settings, comm, stream);
    dead = dead_columns(*hessian, stream);
  }
  Array<float> cross;
  if (hessian != nullptr && !hessian->cross.empty()) {
    set_targets(hessian->cross, linears, settings, dead, factors, stream);
    cross = sum_of_halves(std::move(hessian->cross), stream);
    step.cross = cross;
  }
  for (std::size_t i = 0; i < linears.size(); ++i)
    results.push_back(unsolved(*linears[i], settings[i], stream));
  Array<float> row_loss(1, std::accumulate(step.rows.begin(), step.rows.end(), std::int64_t{0}),
                        stream);
  fill_zero(row_loss.view.data, row_loss.memory.bytes(), stream);
  solve_own_rows(step, factors, dead, comm.rank(), results, row_loss, stream);
  gather_rows(step, results, row_loss, comm, stream);
  read_outcome(step, factors, row_loss, results, comm, stream);
  return results;
}

std::vector<QuantizedLinear> solve(Hessian* hessian, const std::vector<const Linear*>& linears,
                                   const std::vector<LinearSettings>& settings, Comm& comm,
                                   Stream& stream) {
  return solve(hessian, linears, settings, RowsOf{}, comm, stream);
}

QuantizedLinear outline_of(const Linear& linear, const LinearSettings& settings) {
  const std::int64_t out = linear.stored.rows;
  const std::int64_t in = linear.stored.cols;
  QuantizedLinear q;
  q.settings = settings;
  q.code.view = {nullptr, out, in};
  q.scale.view = {nullptr, out, settings.groups(in)};
  q.zero.view = {nullptr, out, settings.groups(in)};
  q.group_of.resize(static_cast<std::size_t>(in));
  for (std::int64_t k = 0; k < in; ++k)
    q.group_of[static_cast<std::size_t>(k)] =
        static_cast<std::int32_t>(k / settings.group_columns(in));
  q.stored_group = identity_order(settings.groups(in));
  return q;
}

namespace {

// What of a linear lies on the host, value after value.
template <class Linears, class Visit>
void visit_outcome(Linears& linears, const Visit& visit) {
  for (auto& q : linears) {
    for (auto* value : {&q.mean_squared_error, &q.damp, &q.agreement}) visit(value, sizeof *value);
    for (auto* value : {&q.fell_back, &q.has_zero_of_zero}) visit(value, sizeof *value);
    for (auto* order : {&q.group_of, &q.stored_group})
      visit(order->data(), order->size() * sizeof(order->front()));
  }
}

}  // namespace

std::string outcome_of(const std::vector<QuantizedLinear>& linears) {
  std::string outcome;
  visit_outcome(linears, [&](const void* value, std::size_t bytes) {
    outcome.append(static_cast<const char*>(value), bytes);
  });
  return outcome;
}

void set_outcome(const std::string& outcome, std::vector<QuantizedLinear>& linears) {
  std::size_t at = 0;
  visit_outcome(linears, [&](void* value, std::size_t bytes) {
    std::memcpy(value, outcome.data() + at, bytes);
    at += bytes;
  });
}

namespace {

// What of the linears lies on the device, one after the other, with its offset in shared memory.
template <class Linears, class Visit>
std::size_t visit_arrays(Linears& linears, const Visit& visit) {
  std::size_t offset = 0;
  const auto next = [&](auto& array) {
    visit(array, offset);
    offset += aligned(static_cast<std::size_t>(array.view.size()) * sizeof(*array.view.data));
  };
  for (auto& q : linears) {
    next(q.code);
    next(q.scale);
    next(q.zero);
  }
  return offset;
}

template <class T>
void set_place(Array<T>& array, const SharedPlace& at, std::size_t offset) {
  array.view.data =
      reinterpret_cast<T*>(static_cast<unsigned char*>(at.memory->data()) + at.offset + offset);
}

}  // namespace

std::size_t shared_bytes(const std::vector<QuantizedLinear>& linears) {
  return visit_arrays(linears, [](const auto&, std::size_t) {});
}

void place(std::vector<QuantizedLinear>& linears, const SharedPlace& at) {
  visit_arrays(linears, [&](auto& array, std::size_t offset) { set_place(array, at, offset); });
  for (QuantizedLinear& q : linears) q.shared = at.memory;
}

void forget_codes(std::vector<QuantizedLinear>& linears) {
  visit_arrays(linears, [](auto& array, std::size_t) {
    array.view.data = nullptr;
    array.memory = {};
  });
  for (QuantizedLinear& q : linears) q.shared = {};
}

std::vector<Buffer> move_to(const SharedPlace& at, std::vector<QuantizedLinear>& linears,
                            Stream& stream) {
  std::vector<Buffer> left;
  visit_arrays(linears, [&](auto& array, std::size_t offset) {
    const auto* from = array.view.data;
    set_place(array, at, offset);
    copy_on_device(array.view.data, from, array.memory.bytes(), stream);
    left.push_back(std::move(array.memory));
  });
  for (QuantizedLinear& q : linears) q.shared = at.memory;
  return left;
}

void dequantize_into(const QuantizedLinear& q, Tensor weight, Stream& stream) {
  const auto& there = q.group_of_on_device.view;
  if (!there.empty()) return dequantize(q.code, q.scale, q.zero, there, weight, stream);
  dequantize(q.code, q.scale, q.zero, upload(q.group_of, stream), weight, stream);
}

}  // namespace qpipe
