#include "stages/calibrate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "kernels/column_statistics.h"
#include "kernels/diagonal.h"
#include "kernels/expert_rows.h"
#include "kernels/hessian.h"
#include "stages/starved.h"
#include "stages/transfer.h"

namespace qpipe {

namespace {

// The units of the fixed-point sums over all ranks' tokens (kernels/hessian.h).
struct FixedPoint {
  Array<std::int32_t> exponent;  // [1, d]
  std::vector<std::int32_t> host_exponent;
  int log2_tokens = 0;
  float largest = 0.0f;  // |x|
};

// The token of a block that row `row` of a panel belongs to.
std::int64_t token_of(const Panel& panel, const Routes* routes, std::int64_t row, Stream& stream) {
  if (!panel.sorted) return row / panel.per_token;
  std::int32_t source = 0;
  copy_to_host(&source, routes->source.view.data + row, sizeof source, stream);
  return source / panel.per_token;
}

const Routes* routes_of(const Activations& activations, std::size_t local) {
  return activations.routes.empty() ? nullptr : &activations.routes.at(local);
}

// The first sample of all ranks with an input that hessian_exponents refuses. Collective.
std::int64_t first_sample_refused(const Activations& activations, std::size_t panel, Comm& comm,
                                  Stream& stream) {
  const Blocking& blocking = activations.blocking;
  const Step& step = activations.input().step;
  std::int64_t first = blocking.samples;
  const auto refused = [](float x) {
    return !(std::fabs(x) <= 0x1p48f);
  };  // the bound of hessian_exponents
  const auto search = [&](std::size_t local, ConstTensor block) {
    const ConstTensor input = panel_of(step, panel, block);
    std::vector<unsigned char> bytes(static_cast<std::size_t>(input.bytes()));
    copy_to_host(bytes.data(), input.data, bytes.size(), stream);
    const auto all_in = [&](const auto* values) {
      for (std::int64_t i = 0; i < input.size(); ++i)
        if (refused(to_float(values[i]))) {
          const std::int64_t token =
              token_of(step.panels[panel], routes_of(activations, local), i / input.cols, stream);
          first = std::min(first, activations.first_sample(local) + token / blocking.seqlen);
          if (!step.panels[panel].sorted) return;  // rows are in the order of the samples
        }
    };
    if (input.dtype == DType::f32)
      all_in(reinterpret_cast<const float*>(bytes.data()));
    else
      all_in(reinterpret_cast<const bf16*>(bytes.data()));
  };
  visit_inputs(activations, search, stream);
  for (const double other : comm.all_gather({static_cast<double>(first)}))
    first = std::min(first, static_cast<std::int64_t>(other));
  return first;
}

FixedPoint choose_units(const Activations& activations, const Group& group, const std::string& what,
                        Comm& comm, Stream& stream) {
  const std::int64_t d = group.width;
  const StepInput& input = activations.input();
  const Matrix<float> maximum =
      input.maximum.view.col_range(input.step.first_column(group.panel) + group.begin, d);
  // Idempotent: kept inputs are reduced once a Hessian.
  comm.all_reduce_max({maximum.data, 1, d}, stream);
  std::vector<float> host_maximum(static_cast<std::size_t>(d));
  copy_to_host(host_maximum.data(), maximum.data, host_maximum.size() * sizeof(float), stream);
  FixedPoint units{Array<std::int32_t>(1, d, stream),
                   std::vector<std::int32_t>(static_cast<std::size_t>(d)), 0,
                   *std::max_element(host_maximum.begin(), host_maximum.end())};
  try {
    hessian_exponents({host_maximum.data(), 1, d}, {units.host_exponent.data(), 1, d});
  } catch (const std::domain_error& fault) {
    throw std::domain_error(
        what + ": " + fault.what() + ", first in calibration sample " +
        std::to_string(first_sample_refused(activations, group.panel, comm, stream)));
  }
  copy_to_device(units.exponent.view.data, units.host_exponent.data(),
                 units.exponent.memory.bytes(), stream);
  units.log2_tokens = activations.blocking.log2_tokens();
  return units;
}

// Groups that read the same columns share their units.
using Columns = std::tuple<std::size_t, std::int64_t, std::int64_t>;  // panel, begin, width
Columns columns_of(const Group& group) { return {group.panel, group.begin, group.width}; }

std::map<Columns, FixedPoint> units_of(const Activations& activations,
                                       const std::vector<CalibratedGroup>& groups, Comm& comm,
                                       Stream& stream) {
  std::map<Columns, FixedPoint> units;
  for (const CalibratedGroup& g : groups)
    if (!units.contains(columns_of(g.group)))
      units.emplace(columns_of(g.group), choose_units(activations, g.group, g.what, comm, stream));
  return units;
}

// The rows that each group has in those blocks, of all ranks. Collective where some are experts'.
std::vector<std::int64_t> count_tokens(const Activations& activations,
                                       const std::vector<CalibratedGroup>& groups,
                                       std::int64_t sampled, Comm& comm) {
  std::int64_t experts = 0;
  for (const CalibratedGroup& g : groups) experts = std::max(experts, g.group.expert + 1);
  std::vector<std::int64_t> of_experts;
  if (experts > 0) of_experts = tokens_of_experts(activations, experts, sampled, comm);
  std::vector<std::int64_t> tokens;
  for (const CalibratedGroup& g : groups)
    tokens.push_back(g.group.expert < 0 ? sampled_tokens(activations.blocking, sampled)
                                        : of_experts[static_cast<std::size_t>(g.group.expert)]);
  return tokens;
}

// What a starved expert's group reads on top, in one block: kept rows of its second step's input,
// or some of all tokens in front of the first.
ConstTensor extra_rows_of(const Activations& activations, const Group& group, std::int64_t missing,
                          std::int64_t sampled, std::size_t local, ConstTensor input,
                          Buffer& memory, Stream& stream) {
  const Step& step = activations.input().step;
  if (missing == 0) return {};
  if (step.panels.at(group.panel).sorted) {
    const ConstTensor rows = kept_rows(activations, group.expert, local, memory, stream);
    return rows.empty() ? rows : rows.col_range(group.begin, group.width);
  }
  const std::vector<std::int32_t> tokens =
      extra_tokens(activations.blocking, activations.block(local), missing, sampled);
  if (tokens.empty()) return {};
  const ConstTensor panel = panel_of(step, group.panel, input).col_range(group.begin, group.width);
  const auto count = static_cast<std::int64_t>(tokens.size());
  const std::size_t bytes = static_cast<std::size_t>(count * group.width) * size_of(panel.dtype);
  if (memory.bytes() < bytes) {
    memory = {};  // not both at once
    memory = Buffer(bytes, stream);
  }
  const Tensor rows(memory.data(), panel.dtype, count, group.width);
  gather_rows(panel, upload(tokens, stream), 1, {}, rows, stream);
  return rows;
}

// The columns' maxima must bound kept rows, too: they come from no block of the input.
void measure_extra_rows(const Activations& activations, const std::vector<CalibratedGroup>& groups,
                        Stream& stream) {
  const StepInput& input = activations.input();
  Buffer memory;
  for (const CalibratedGroup& g : groups) {
    if (g.group.expert < 0 || !input.step.panels.at(g.group.panel).sorted) continue;
    for (std::size_t local = 0; local < activations.blocks(); ++local)
      if (const ConstTensor rows = kept_rows(activations, g.group.expert, local, memory, stream);
          !rows.empty())
        column_max_abs(
            rows, input.maximum.view.col_range(input.step.first_column(g.group.panel), rows.cols),
            stream);
  }
}

// Columns [begin, begin + cols) of the 64-bit sum, from row `begin` on.
struct SumPanel {
  std::int64_t begin = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t first_element = 0;  // of the panel in the sum's memory
  std::int64_t end_element() const { return first_element + rows * cols; }
  Matrix<std::int64_t> in(Matrix<std::int64_t> memory) const {
    return {memory.data + first_element, rows, cols};
  }
};

// The panels of columns [begin, end) of a [d, d] Hessian, one after the other in memory.
std::vector<SumPanel> sum_panels(std::int64_t d, std::int64_t begin, std::int64_t end) {
  std::vector<SumPanel> panels;
  for (std::int64_t element = 0; begin < end;
       begin += hessian_sum_panel, element = panels.back().end_element())
    panels.push_back({begin, d - begin, std::min(hessian_sum_panel, end - begin), element});
  return panels;
}

// The finished columns of the sum, panel by panel of the kernel, in host memory.
void finish_on_host(Matrix<const std::int64_t> sum, std::int64_t first_column,
                    const FixedPoint& units, std::int64_t tokens, Hessian& hessian,
                    Stream& stream) {
  const std::int64_t width = std::min(hessian_panel(stream.backend()), sum.cols);
  Buffer memory(static_cast<std::size_t>(sum.rows * width) * sizeof(float), stream);
  for (std::int64_t j0 = 0; j0 < sum.cols; j0 += width) {
    const std::int64_t cols = std::min(width, sum.cols - j0);
    const Matrix<float> panel(static_cast<float*>(memory.data()), sum.rows - j0, cols);
    const Matrix<const std::int64_t> part = sum.row_range(j0, panel.rows).col_range(j0, cols);
    const std::int64_t begin = first_column + j0;
    finish_hessian_panel(part, units.exponent, units.log2_tokens, tokens, begin, panel, stream);
    const std::size_t bytes = static_cast<std::size_t>(panel.size()) * sizeof(float);
    HessianPanel& kept =
        hessian.panels.emplace_back(HessianPanel{begin, cols, HostBuffer(bytes, stream)});
    copy_to_host(kept.memory.data(), panel.data, bytes, stream);
    const auto* values = reinterpret_cast<const float*>(kept.memory.data());
    for (std::int64_t c = 0; c < cols; ++c)
      hessian.diagonal[static_cast<std::size_t>(kept.begin + c)] = values[c * (cols + 1)];
  }
}

}  // namespace

Group whole_input(const Activations& activations) {
  Group group;
  group.width = activations.input().width;
  return group;
}

std::int64_t hessian_sum_elements(std::int64_t d, std::int64_t columns) {
  const std::vector<SumPanel> panels = sum_panels(d, 0, std::min(columns, d));
  return panels.empty() ? 0 : panels.back().end_element();
}

namespace {

// A group's sum: of all of its columns, or of a range of them that all groups have.
struct Sum {
  const Group* group = nullptr;
  const FixedPoint* units = nullptr;
  Matrix<std::int64_t> memory;
  std::int64_t missing = 0;  // tokens of a starved expert
  std::vector<SumPanel> panels;

  std::int64_t columns() const { return units->exponent.view.cols; }
  Matrix<std::int64_t> all() const {
    return {memory.data, 1, panels.empty() ? 0 : panels.back().end_element()};
  }
  void begin_range(std::int64_t begin, std::int64_t width, Stream& stream) {
    panels = begin < columns() ? sum_panels(columns(), begin, std::min(columns(), begin + width))
                               : std::vector<SumPanel>{};
    fill_zero(memory.data, static_cast<std::size_t>(all().size()) * sizeof(std::int64_t), stream);
  }
  void add(ConstTensor rows, Stream& stream) const {
    if (rows.rows == 0) return;
    for (const SumPanel& panel : panels)
      accumulate_hessian(rows, units->exponent, units->log2_tokens, panel.begin, panel.in(all()),
                         stream);
  }
  // The same at a later time, together with those of other sums.
  void add(ConstTensor rows, Matrix<const std::int32_t> source, std::int64_t slots,
           std::vector<HessianRows>& to) const {
    for (const SumPanel& panel : panels)
      to.push_back(
          {rows, units->exponent, units->log2_tokens, panel.begin, panel.in(all()), source, slots});
  }
  void finish(const Places& places, Hessian& hessian, Stream& stream) const {
    for (const SumPanel& panel : panels)
      if (places.hessian_on_host)
        finish_on_host(panel.in(all()), panel.begin, *units,
                       std::max<std::int64_t>(1, hessian.tokens), hessian, stream);
      else
        finish_hessian(panel.in(all()), units->exponent, units->log2_tokens,
                       std::max<std::int64_t>(1, hessian.tokens), panel.begin, hessian.matrix,
                       stream);
  }
};

// The rows of a block's input that come to an expert, where they are.
void add_expert(const Step& step, const Sum& sum, ConstTensor input, const Routes& routes,
                std::vector<HessianRows>& to) {
  const Group& group = *sum.group;
  const ConstTensor panel = panel_of(step, group.panel, input).col_range(group.begin, group.width);
  const RowRange rows = routes.rows_of(group.expert);
  if (rows.count == 0) return;
  if (step.panels[group.panel].sorted)
    sum.add(panel.row_range(rows.begin, rows.count), {}, 1, to);
  else
    sum.add(panel, Matrix<const std::int32_t>(routes.source.view).col_range(rows.begin, rows.count),
            routes.expert.view.cols, to);
}

// Each sum begins at a multiple of 256 bytes.
std::int64_t sum_elements(const CalibratedGroup& group, std::int64_t columns) {
  return (hessian_sum_elements(group.group.width, columns) + 31) / 32 * 32;
}

bool is_for(const CalibratedGroup& group, const Comm& comm) {
  return group.owner < 0 || group.owner == comm.rank();
}

}  // namespace

std::vector<Hessian> calibrate(const Activations& activations,
                               const std::vector<CalibratedGroup>& groups, std::int64_t sampled,
                               std::int64_t expert_tokens, const Places& places, Comm& comm,
                               Stream& stream) {
  if (expert_tokens > 0) measure_extra_rows(activations, groups, stream);
  const std::map<Columns, FixedPoint> units = units_of(activations, groups, comm, stream);
  const std::vector<std::int64_t> tokens = count_tokens(activations, groups, sampled, comm);
  const std::vector<std::size_t> blocks = sampled_blocks(activations, sampled);
  std::int64_t widest = 0;
  for (const CalibratedGroup& g : groups) widest = std::max(widest, g.group.width);
  const std::int64_t width =
      places.hessian_panel_columns > 0 ? std::min(places.hessian_panel_columns, widest) : widest;

  std::vector<Hessian> results(groups.size());
  {
    std::int64_t elements = 0;
    for (const CalibratedGroup& g : groups) elements += sum_elements(g, width);
    const Array<std::int64_t> memory(1, elements, stream);
    elements = 0;
    std::vector<Sum> sums;
    for (std::size_t i = 0; i < groups.size(); ++i) {
      const FixedPoint& unit = units.at(columns_of(groups[i].group));
      const std::int64_t d = groups[i].group.width;
      const std::int64_t missing =
          groups[i].group.expert < 0
              ? 0
              : missing_tokens(activations.blocking, tokens[i], expert_tokens, sampled);
      results[i].tokens = tokens[i] + missing;
      results[i].routed = tokens[i];
      results[i].largest_input = unit.largest;
      const bool own = is_for(groups[i], comm);
      if (own) results[i].diagonal.resize(static_cast<std::size_t>(d));
      if (own && !places.hessian_on_host) results[i].matrix = Array<float>(d, d, stream);
      sums.push_back({&groups[i].group,
                      &unit,
                      memory.view.col_range(elements, sum_elements(groups[i], width)),
                      missing,
                      {}});
      elements += sum_elements(groups[i], width);
    }
    Buffer gathered;
    const Step& step = activations.input().step;
    for (std::int64_t begin = 0; begin < widest; begin += width) {
      for (Sum& sum : sums) sum.begin_range(begin, width, stream);
      const auto add = [&](std::size_t local, ConstTensor input) {
        const Routes* routes = routes_of(activations, local);
        std::vector<HessianRows> together;
        const auto add_now = [&](const Sum& sum, ConstTensor rows) {  // those in `gathered`
          std::vector<HessianRows> alone;
          if (rows.rows > 0) sum.add(rows, {}, 1, alone);
          accumulate_hessians(alone, stream);
        };
        for (const Sum& sum : sums) {
          const Group& group = *sum.group;
          if (group.expert < 0) {
            sum.add(group_rows(step, group, input, routes, gathered, stream), stream);
            continue;
          }
          if (group.weighted)
            add_now(sum, group_rows(step, group, input, routes, gathered, stream));
          else
            add_expert(step, sum, input, *routes, together);
          add_now(sum, extra_rows_of(activations, group, sum.missing, sampled, local, input,
                                     gathered, stream));
        }
        accumulate_hessians(together, stream);
      };
      visit_inputs(activations, blocks, add, stream);
      std::vector<SumTo> owned;
      for (std::size_t i = 0; i < sums.size(); ++i)
        if (groups[i].owner < 0)
          comm.all_reduce_sum(sums[i].all(), stream);
        else
          owned.push_back({sums[i].all(), groups[i].owner});
      comm.reduce_sums(owned, stream);
      for (std::size_t i = 0; i < sums.size(); ++i)
        if (is_for(groups[i], comm)) sums[i].finish(places, results[i], stream);
    }
  }
  if (places.hessian_on_host) return results;
  std::int64_t columns = 0;
  for (const Hessian& result : results) columns += result.matrix.view.cols;
  const Array<float> diagonals(1, columns, stream);
  std::int64_t column = 0;
  for (const Hessian& result : results) {
    if (result.matrix.empty()) continue;
    const std::int64_t d = result.matrix.view.cols;
    diagonal(result.matrix, diagonals.view.col_range(column, d), stream);
    column += d;
  }
  std::vector<float> host(static_cast<std::size_t>(columns));
  copy_to_host(host.data(), diagonals.view.data, diagonals.memory.bytes(), stream);
  auto from = host.cbegin();
  for (Hessian& result : results) {
    if (result.matrix.empty()) continue;
    std::copy_n(from, result.diagonal.size(), result.diagonal.begin());
    from += result.matrix.view.cols;
  }
  return results;
}

Hessian calibrate(const Activations& activations, const Group& group, const std::string& what,
                  std::int64_t tokens, const Places& places, Comm& comm, Stream& stream) {
  return std::move(
      calibrate(activations, {{group, what}}, tokens, 0, places, comm, stream).front());
}

void place_hessian(const Hessian& hessian, Matrix<const std::int32_t> perm, Matrix<float> h,
                   Stream& stream) {
  Buffer memory(hessian.panels.empty() ? 0 : hessian.panels.front().memory.bytes(),
                stream);  // the first is the largest
  for (const HessianPanel& panel : hessian.panels) {
    copy_to_device(memory.data(), panel.memory.data(), panel.memory.bytes(), stream);
    place_hessian_panel(
        {static_cast<const float*>(memory.data()), h.rows - panel.begin, panel.cols}, panel.begin,
        perm, h, stream);
  }
}

void bring_to_device(Hessian& hessian, Stream& stream) {
  const auto d = static_cast<std::int64_t>(hessian.diagonal.size());
  if (!hessian.matrix.empty() || hessian.panels.empty()) return;
  hessian.matrix = Array<float>(d, d, stream);
  place_hessian(hessian, {}, hessian.matrix, stream);
}

void leave_device(Hessian& hessian) {
  if (!hessian.panels.empty()) hessian.matrix = {};
}

std::vector<double> mean_magnitude(const Activations& activations, const Group& group,
                                   const std::string& what, Comm& comm, Stream& stream) {
  const FixedPoint units = choose_units(activations, group, what, comm, stream);
  Array<std::int64_t> sum(1, units.exponent.view.cols, stream);
  fill_zero(sum.view.data, sum.memory.bytes(), stream);
  const Step& step = activations.input().step;
  Buffer gathered;
  const auto add = [&](std::size_t local, ConstTensor input) {
    const ConstTensor rows =
        group_rows(step, group, input, routes_of(activations, local), gathered, stream);
    if (rows.rows > 0) accumulate_column_abs(rows, units.exponent, units.log2_tokens, sum, stream);
  };
  visit_inputs(activations, add, stream);
  comm.all_reduce_sum(sum, stream);
  std::vector<std::int64_t> host(units.host_exponent.size());
  copy_to_host(host.data(), sum.view.data, sum.memory.bytes(), stream);
  const std::int64_t tokens = count_tokens(activations, {{group, what}}, 0, comm).front();
  std::vector<double> mean(host.size());
  for (std::size_t i = 0; i < mean.size(); ++i)
    mean[i] =
        std::ldexp(static_cast<double>(host[i]), units.host_exponent[i] + units.log2_tokens - 62) /
        static_cast<double>(std::max<std::int64_t>(1, tokens));
  return mean;
}

}  // namespace qpipe
