#include "stages/solve.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <stdexcept>
#include <tuple>

#include "kernels/factor.h"
#include "kernels/gptq_sweep.h"
#include "kernels/quantize_groups.h"
#include "launch/share.h"
#include "stages/column_order.h"

namespace qpipe {

namespace {

// Rows are shared in blocks of this many.
constexpr std::int64_t row_block = 32;

// Rows of a linear that are in work as float32 at once: 1 GiB of them.
constexpr std::int64_t rows_at_once(std::int64_t in) { return std::max<std::int64_t>(2048, (std::int64_t{1} << 28) / in / 128 * 128); }

using Order = std::vector<std::int32_t>;

template <class T>
Array<T> upload(const std::vector<T>& values, Stream& stream) {
  Array<T> array(1, static_cast<std::int64_t>(values.size()), stream);
  copy_to_device(array.view.data, values.data(), values.size() * sizeof(T), stream);
  return array;
}

Order identity_order(std::int64_t d) {
  Order order(static_cast<std::size_t>(d));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// perm[k] = the column solved at position k.
Order column_order(const LinearSettings& settings, const std::vector<float>& diagonal) {
  const auto d = static_cast<std::int64_t>(diagonal.size());
  if (settings.desc_act) return act_order(diagonal);
  if (settings.act_group_aware && settings.groups(d) >= 1) return group_aware_order(diagonal, settings.group_columns(d));
  return identity_order(d);
}

// N and the pivots for one column order (kernels/factor.h), on every rank.
struct Factor {
  Array<std::int32_t> perm;
  Array<float> n;
  Array<float> pivot;
  double damp = 0.0;
  bool fell_back = false;
};

// Raises the damping until the factorisation succeeds; without success leaves N = I, which makes the sweep round to nearest.
void factor_with_damping(const Hessian& hessian, const LinearSettings& settings, Factor& result, Stream& stream) {
  const auto d = static_cast<std::int64_t>(hessian.diagonal.size());
  double sum = 0.0;
  for (const float h : hessian.diagonal) sum += h;
  const double mean = sum / static_cast<double>(d);
  for (double damp = settings.damp_percent; damp < 1.0; damp += settings.damp_increment) {
    result.damp = damp;
    if (hessian.matrix.empty()) {  // permuted into n on its way from the host, and factored in place
      place_hessian(hessian, result.perm, result.n, stream);
      if (factor(result.n.view, upload(identity_order(d), stream), damp * mean, result.n, result.pivot, stream)) return;
    } else if (factor(hessian.matrix, result.perm, damp * mean, result.n, result.pivot, stream)) {
      return;
    }
  }
  result.fell_back = true;
  std::vector<float> row(static_cast<std::size_t>(d), 0.0f);
  std::vector<float> pivot(static_cast<std::size_t>(d));
  const float one = 1.0f;
  fill_zero(result.n.view.data, result.n.memory.bytes(), stream);
  for (std::int64_t k = 0; k < d; ++k) copy_to_device(&result.n.view(k, k), &one, sizeof(one), stream);
  std::vector<std::int32_t> perm(static_cast<std::size_t>(d));
  copy_to_host(perm.data(), result.perm.view.data, perm.size() * sizeof(std::int32_t), stream);
  for (std::size_t k = 0; k < pivot.size(); ++k) pivot[k] = std::sqrt(std::max(0.0f, hessian.diagonal[static_cast<std::size_t>(perm[k])]));
  copy_to_device(result.pivot.view.data, pivot.data(), pivot.size() * sizeof(float), stream);
}

// Linears with the same order and damping share a factor.
using FactorKey = std::tuple<bool, std::int64_t, double, double>;  // desc_act, group columns of act_group_aware (0: none), damping

FactorKey factor_key(const LinearSettings& s, std::int64_t d) {
  return {s.desc_act, s.act_group_aware && !s.desc_act ? s.group_columns(d) : 0, s.damp_percent, s.damp_increment};
}

std::map<FactorKey, Factor> make_factors(const Hessian& hessian, const std::vector<LinearSettings>& settings, Comm& comm, Stream& stream) {
  const auto d = static_cast<std::int64_t>(hessian.diagonal.size());
  std::map<FactorKey, const LinearSettings*> wanted;
  for (const LinearSettings& s : settings)
    if (s.method == Method::gptq) wanted.emplace(factor_key(s, d), &s);

  std::map<FactorKey, Factor> factors;
  const std::vector<int> owners = share_by_cost(std::vector<double>(wanted.size(), 1.0), comm.size());
  std::size_t task = 0;
  for (const auto& [key, s] : wanted) {
    Factor& result = factors[key];
    result.perm = upload(column_order(*s, hessian.diagonal), stream);
    result.n = Array<float>(d, d, stream);
    result.pivot = Array<float>(1, d, stream);
    if (owners[task++] == comm.rank()) factor_with_damping(hessian, *s, result, stream);
  }
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

QuantizedLinear allocate(const Linear& linear, const LinearSettings& settings, Stream& stream) {
  const std::int64_t out = linear.stored.rows;
  const std::int64_t in = linear.stored.cols;
  QuantizedLinear q;
  q.settings = settings;
  q.code = Array<std::uint8_t>(out, in, stream);
  q.scale = Array<float>(out, settings.groups(in), stream);
  q.zero = Array<std::uint8_t>(out, settings.groups(in), stream);
  q.group_of.resize(static_cast<std::size_t>(in));
  for (std::int64_t k = 0; k < in; ++k) q.group_of[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(k / settings.group_columns(in));
  q.stored_group = identity_order(settings.groups(in));
  return q;
}

// weight: the given rows.
void solve_rtn(ConstTensor weight, const RowRange& rows, QuantizedLinear& q, Stream& stream) {
  const std::int64_t in = weight.cols;
  const Array<std::int32_t> order = upload(identity_order(in), stream);
  const Array<std::uint8_t> dead = upload(std::vector<std::uint8_t>(static_cast<std::size_t>(in), 0), stream);
  Array<float> w(rows.count, in, stream);
  gather_columns(weight, order, dead, w, stream);
  const auto scale = q.scale.view.row_range(rows.begin, rows.count);
  const auto zero = q.zero.view.row_range(rows.begin, rows.count);
  find_grids(w, q.settings.group_columns(in), {q.settings.bits, q.settings.symmetric, q.settings.mse_norm}, scale, zero, stream);
  round_to_grid(w, scale, zero, upload(q.group_of, stream), q.settings.bits, q.code.view.row_range(rows.begin, rows.count), stream);
}

void solve_gptq(const Hessian& hessian, const Factor& factor, const Order& perm, ConstTensor weight, const RowRange& rows,
                QuantizedLinear& q, Matrix<float> row_loss, Stream& stream) {
  const std::int64_t in = weight.cols;
  const LinearSettings& s = q.settings;
  std::vector<std::uint8_t> dead(static_cast<std::size_t>(in));
  for (std::size_t k = 0; k < dead.size(); ++k) dead[k] = hessian.diagonal[k] == 0.0f;
  const Array<std::uint8_t> dead_on_device = upload(dead, stream);
  const auto scale = q.scale.view.row_range(rows.begin, rows.count);
  const auto zero = q.zero.view.row_range(rows.begin, rows.count);

  SweepOptions options;
  options.grid = {s.bits, s.symmetric, s.mse_norm};
  options.group_size = s.group_columns(in);
  options.static_grids = s.static_groups;
  Array<float> w(rows.count, in, stream);
  Order solved_group(static_cast<std::size_t>(in));  // group of position k
  if (s.static_groups) {
    gather_columns(weight, upload(identity_order(in), stream), dead_on_device, w, stream);
    find_grids(w, options.group_size, options.grid, scale, zero, stream);
    for (std::size_t k = 0; k < solved_group.size(); ++k) solved_group[k] = q.group_of[static_cast<std::size_t>(perm[k])];
  } else {
    for (std::size_t k = 0; k < solved_group.size(); ++k)
      solved_group[k] = static_cast<std::int32_t>(static_cast<std::int64_t>(k) / options.group_size);
  }
  gather_columns(weight, factor.perm, dead_on_device, w, stream);
  Array<std::uint8_t> code(rows.count, in, stream);
  gptq_sweep(w, factor.n, factor.pivot, options, upload(solved_group, stream), scale, zero, code,
             row_loss.col_range(rows.begin, rows.count), stream);
  scatter_columns(code, factor.perm, q.code.view.row_range(rows.begin, rows.count), stream);
}

// Column → group as solved, once the columns have been solved in the order `perm` with dynamic groups.
void set_dynamic_groups(const Order& perm, QuantizedLinear& q) {
  const auto in = static_cast<std::int64_t>(perm.size());
  const std::int64_t columns = q.settings.group_columns(in);
  for (std::int64_t k = 0; k < in; ++k)
    q.group_of[static_cast<std::size_t>(perm[static_cast<std::size_t>(k)])] = static_cast<std::int32_t>(k / columns);
  if (!q.settings.act_group_aware || q.settings.desc_act) return;
  for (std::size_t g = 0; g < q.stored_group.size(); ++g)  // groups stayed whole: the stored group is that of any of its columns
    q.stored_group[g] = static_cast<std::int32_t>(perm[g * static_cast<std::size_t>(columns)] / columns);
}

void check_and_summarise(const Linear& linear, QuantizedLinear& q, Stream& stream) {
  std::vector<float> scale(static_cast<std::size_t>(q.scale.view.size()));
  copy_to_host(scale.data(), q.scale.view.data, q.scale.memory.bytes(), stream);
  if (!std::all_of(scale.begin(), scale.end(), [](float s) { return std::isfinite(s); }))
    throw std::domain_error(linear.name +
                            ": a weight is not finite or too large for a float16 scale; check the checkpoint for damaged weights");
  std::vector<std::uint8_t> zero(static_cast<std::size_t>(q.zero.view.size()));
  copy_to_host(zero.data(), q.zero.view.data, zero.size(), stream);
  q.has_zero_of_zero = std::find(zero.begin(), zero.end(), 0) != zero.end();
}

}  // namespace

namespace {

// rows_of: empty for the checkpoint's weights.
std::vector<QuantizedLinear> solve_all(const Hessian* hessian, const std::vector<const Linear*>& linears,
                                       const std::vector<LinearSettings>& settings, const RowsOf& rows_of, Comm& comm, Stream& stream) {
  std::map<FactorKey, Factor> factors;
  if (hessian != nullptr) factors = make_factors(*hessian, settings, comm, stream);

  std::vector<std::int64_t> rows;
  for (const Linear* linear : linears) rows.push_back(linear->stored.rows);
  const auto shares = share_rows(rows, row_block, comm.size());

  std::vector<QuantizedLinear> results;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    const Linear& linear = *linears[i];
    QuantizedLinear q = allocate(linear, settings[i], stream);
    const RowRange mine = shares[i][static_cast<std::size_t>(comm.rank())];
    const bool gptq = settings[i].method == Method::gptq;
    require(!gptq || hessian != nullptr, "solve: GPTQ needs a Hessian");
    const Factor* factor = gptq ? &factors.at(factor_key(settings[i], linear.stored.cols)) : nullptr;
    const Order perm = gptq ? column_order(settings[i], hessian->diagonal) : Order{};
    const Array<float> row_loss = gptq ? Array<float>(1, linear.stored.rows, stream) : Array<float>{};
    for (std::int64_t done = 0; done < mine.count;) {
      const RowRange part{mine.begin + done, std::min(mine.count - done, rows_at_once(linear.stored.cols))};
      const Array<float> given = rows_of ? rows_of(i, part) : Array<float>{};
      const ConstTensor weight = rows_of ? ConstTensor(given.view) : linear.stored.row_range(part.begin, part.count);
      if (gptq)
        solve_gptq(*hessian, *factor, perm, weight, part, q, row_loss, stream);
      else
        solve_rtn(weight, part, q, stream);
      done += part.count;
    }
    if (gptq) {
      if (!settings[i].static_groups) set_dynamic_groups(perm, q);
      comm.all_gather_rows(row_loss.view.data, sizeof(float), shares[i], stream);
      std::vector<float> loss(static_cast<std::size_t>(linear.stored.rows));
      copy_to_host(loss.data(), row_loss.view.data, loss.size() * sizeof(float), stream);
      q.mean_squared_error = std::accumulate(loss.begin(), loss.end(), 0.0) / static_cast<double>(loss.size());
      q.damp = factor->damp;
      q.fell_back = factor->fell_back;
    }
    comm.all_gather_rows(q.code.view.data, static_cast<std::size_t>(q.code.view.cols), shares[i], stream);
    comm.all_gather_rows(q.scale.view.data, static_cast<std::size_t>(q.scale.view.cols) * sizeof(float), shares[i], stream);
    comm.all_gather_rows(q.zero.view.data, static_cast<std::size_t>(q.zero.view.cols), shares[i], stream);
    check_and_summarise(linear, q, stream);
    results.push_back(std::move(q));
  }
  return results;
}

}  // namespace

std::vector<QuantizedLinear> solve(const Hessian* hessian, const std::vector<const Linear*>& linears,
                                   const std::vector<LinearSettings>& settings, Comm& comm, Stream& stream) {
  return solve_all(hessian, linears, settings, {}, comm, stream);
}

std::vector<QuantizedLinear> solve(const Hessian* hessian, const std::vector<const Linear*>& linears,
                                   const std::vector<LinearSettings>& settings, const RowsOf& rows_of, Comm& comm, Stream& stream) {
  return solve_all(hessian, linears, settings, rows_of, comm, stream);
}

void dequantize_into(const QuantizedLinear& q, Tensor weight, Stream& stream) {
  dequantize(q.code, q.scale, q.zero, upload(q.group_of, stream), weight, stream);
}

}  // namespace qpipe
