#include "stages/experts.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/expert_rows.h"
#include "kernels/linear.h"
#include "kernels/linears.h"
#include "kernels/route.h"
#include "stages/attention.h"
#include "stages/transfer.h"

namespace qpipe {

namespace {

std::int64_t outputs(const Mlp& mlp) {
  std::int64_t width = 0;
  for (const LinearSpec& linear : mlp.in) width += linear.out_features;
  return width;
}

const Mlp& any(const Experts& experts) { return experts.experts.front(); }

// The panels of the second step's input.
template <class Void>
struct Activated {
  AnyMatrix<Void> sorted;
  AnyMatrix<Void> shared;
};

template <class Void>
Activated<Void> panels(const Experts& experts, AnyMatrix<Void> input) {
  const std::int64_t rows = input.rows * experts.per_token();
  Activated<Void> result{input.part(0, rows, any(experts).width()), {}};
  if (experts.shared)
    result.shared = input.part(rows * any(experts).width(), input.rows, experts.shared->width());
  return result;
}

// The panels of the first step's input: one and the same where the experts have no norm of theirs.
template <class Void>
struct Read {
  AnyMatrix<Void> experts;
  AnyMatrix<Void> shared;
};

template <class Void>
Read<Void> first_panels(const Experts& experts, AnyMatrix<Void> input) {
  const std::int64_t hidden = any(experts).in.front().in_features;
  const AnyMatrix<Void> first = input.part(0, input.rows, hidden);
  return {first, experts.norm ? input.part(first.size(), input.rows, hidden) : first};
}

template <class Void>
AnyMatrix<Void> rows_of(AnyMatrix<Void> tensor, const RowRange& rows) {
  return tensor.row_range(rows.begin, rows.count);
}

void activate(const Mlp& mlp, ConstTensor in, Tensor y, Stream& stream) {
  if (mlp.gated) return gated_activation(in, mlp.activation, mlp.limits, y, stream);
  activation(in, mlp.activation, y, stream);
}

// Each expert's linears lie side by side in Layer::linears, as expert_linears has them.
const Linear* linears_of(const Experts& experts, const Layer& layer, std::size_t expert) {
  const Linear* first = &layer.linear(any(experts).in.front());
  return first + expert * (any(experts).in.size() + 1);
}

// Keeps what the experts [first, end) run on the device, where weights come in waves. out: their
// last linears, else those before.
std::shared_ptr<const void> bring(const Experts& experts, const Layer& layer, bool out,
                                  std::size_t first, std::size_t end) {
  if (!layer.waves.bring) return nullptr;
  const std::size_t inner = any(experts).in.size();
  std::vector<std::size_t> linears;
  for (std::size_t e = first; e < end; ++e) {
    const auto begin =
        static_cast<std::size_t>(linears_of(experts, layer, e) - layer.linears.data());
    for (std::size_t i = out ? inner : 0; i < (out ? inner + 1 : inner); ++i)
      linears.push_back(begin + i);
  }
  return layer.waves.bring(linears);
}

// work(first, end) for all experts, as many at a time as may be on the device.
template <class Work>
void in_waves(const Experts& experts, const Layer& layer, bool out, Work work) {
  const std::size_t count = experts.experts.size();
  const auto at_once =
      layer.waves.at_once > 0 ? static_cast<std::size_t>(layer.waves.at_once) : count;
  for (std::size_t first = 0; first < count; first += at_once) {
    const std::size_t end = std::min(count, first + at_once);
    const std::shared_ptr<const void> here = bring(experts, layer, out, first, end);
    work(first, end);
  }
}

void matrix_of(Array<std::int32_t>& array, std::int64_t rows, std::int64_t cols, Stream& stream) {
  if (array.view.rows != rows || array.view.cols != cols)
    array = Array<std::int32_t>(rows, cols, stream);
}

void matrix_of(Array<float>& array, std::int64_t rows, std::int64_t cols, Stream& stream) {
  if (array.view.rows != rows || array.view.cols != cols) array = Array<float>(rows, cols, stream);
}

Matrix<const float> vector_of(const Layer& layer, const std::string& name) {
  return name.empty() ? Matrix<const float>{} : layer.vectors.at(name);
}

void normed(const std::optional<NormSpec>& norm, const Layer& layer, ConstTensor x, Tensor y,
            Stream& stream) {
  if (norm) return apply_norm(*norm, layer.norms.at(norm->name), x, y, stream);
  convert(x, y, stream);
}

// x [tokens, hidden]: what the router reads.
void route_tokens(const Experts& experts, const Layer& layer, ConstTensor x, Routes& routes,
                  Stream& stream) {
  const auto count = static_cast<std::int64_t>(experts.experts.size());
  const std::int64_t k = experts.per_token();
  const Router& router = experts.router;
  matrix_of(routes.expert, x.rows, k, stream);
  matrix_of(routes.weight, x.rows, k, stream);
  matrix_of(routes.source, 1, x.rows * k, stream);
  matrix_of(routes.place, x.rows, k, stream);
  const Linear& scores = layer.linear(router.linear);
  Array<float> logits(x.rows, count, stream);
  linear(x, scores.weight, scores.bias, logits.view, stream);
  if (router.multiplier != 1.0f) scale(logits.view, router.multiplier, stream);
  route(logits, vector_of(layer, router.correction), vector_of(layer, router.expert_scale),
        router.options, routes.expert, routes.weight, stream);
  Array<std::int32_t> begin(1, count + 1, stream);
  sort_by_expert(routes.expert, count, begin, routes.source, routes.place, stream);
  const std::vector<std::int32_t> first_row = download_matrix(begin.view, stream);
  routes.first_row.assign(first_row.begin(), first_row.end());
}

}  // namespace

RowRange Routes::rows_of(std::int64_t expert_index) const {
  const auto e = static_cast<std::size_t>(expert_index);
  return {first_row.at(e), first_row.at(e + 1) - first_row.at(e)};
}

std::int64_t route_bytes(const Experts& experts) {
  return experts.per_token() * 4 * 4 + (experts.shared_gate ? 4 : 0);
}

std::vector<LinearSpec> expert_linears(const Experts& experts) {
  std::vector<LinearSpec> linears{experts.router.linear};
  const auto add = [&](const Mlp& mlp) {
    linears.insert(linears.end(), mlp.in.begin(), mlp.in.end());
    linears.push_back(mlp.out);
  };
  for (const Mlp& expert : experts.experts) add(expert);
  if (experts.shared) add(*experts.shared);
  if (experts.shared_gate) linears.push_back(*experts.shared_gate);
  return linears;
}

void add_expert_steps(const Experts& experts, std::int64_t hidden, std::size_t first,
                      std::vector<Step>& steps) {
  require(!experts.after || !experts.shared_gate,
          "add_expert_steps: no gate of shared experts beside a norm of the others' sum");
  const Mlp& one = any(experts);
  Step in;
  in.part = Part::mlp;
  in.panels.assign(experts.norm ? 2 : 1, {hidden, 1, false});
  Step out;
  out.part = Part::mlp;
  out.number = 1;
  out.hidden = Access::update;
  out.panels = {{one.width(), experts.per_token(), true}};
  if (experts.shared) out.panels.push_back({experts.shared->width(), 1, false});
  for (Step* step : {&in, &out})
    for (const Panel& panel : step->panels) step->width += panel.columns * panel.per_token;

  Group all{0, hidden, {}};
  all.panel = in.panels.size() - 1;
  if (!experts.router.norm) all.linears.push_back(first);  // else what it reads is not stored
  std::size_t next = first + 1;
  const auto take = [&](std::size_t count) {
    std::vector<std::size_t> indices;
    for (std::size_t i = 0; i < count; ++i) indices.push_back(next++);
    return indices;
  };
  for (std::size_t e = 0; e < experts.experts.size(); ++e) {
    const auto expert = static_cast<std::int64_t>(e);
    in.groups.push_back({0, hidden, take(one.in.size()), 0, expert, experts.scales_inputs});
    out.groups.push_back({0, one.width(), take(1), 0, expert, false});
  }
  if (experts.shared) {
    for (const std::size_t linear : take(experts.shared->in.size())) all.linears.push_back(linear);
    out.groups.push_back({0, experts.shared->width(), take(1), 1, -1, false});
  }
  if (experts.shared_gate) all.linears.push_back(next++);
  if (!all.linears.empty()) in.groups.push_back(std::move(all));
  if (experts.router.norm) in.runs.push_back(first);
  for (Step* step : {&in, &out})
    for (const Group& group : step->groups)
      step->runs.insert(step->runs.end(), group.linears.begin(), group.linears.end());
  steps.push_back(std::move(in));
  steps.push_back(std::move(out));
}

std::int64_t experts_scratch_width(const Experts& experts, std::int64_t hidden) {
  const std::int64_t k = experts.per_token();
  const std::int64_t in =
      k * (hidden + outputs(any(experts))) + (experts.shared ? outputs(*experts.shared) : 0);
  const std::int64_t out = k * hidden + (experts.after ? 2 : 1) * hidden;
  return std::max(in, out);
}

void read_experts_input(const Experts& experts, const std::optional<NormSpec>& norm,
                        const Layer& layer, ConstTensor hidden, Tensor y, Routes& routes,
                        Stream& stream) {
  const Read<void> read = first_panels(experts, y);
  const std::optional<NormSpec>& own = experts.norm ? experts.norm : norm;
  if (experts.norm) normed(norm, layer, hidden, read.shared, stream);
  normed(experts.router.norm ? experts.router.norm : own, layer, hidden, read.experts, stream);
  route_tokens(experts, layer, read.experts, routes, stream);
  if (experts.router.norm) normed(own, layer, hidden, read.experts, stream);
  if (experts.shared_gate) {
    matrix_of(routes.shared, y.rows, 1, stream);
    row_gate(read.shared, layer.linear(*experts.shared_gate).weight, routes.shared, stream);
  } else {
    routes.shared = {};
  }
}

void expert_activations(const Experts& experts, const Layer& layer, ConstTensor x,
                        const Routes& routes, Tensor y, Tensor scratch, Stream& stream) {
  const std::int64_t k = experts.per_token();
  const Mlp& one = any(experts);
  const std::int64_t rows_of_all = x.rows * k;
  const Read<const void> panel = first_panels(experts, x);
  const Tensor read = scratch.part(0, rows_of_all, panel.experts.cols);
  const Tensor in = scratch.part(read.size(), rows_of_all, outputs(one));
  gather_rows(
      panel.experts, routes.source, k,
      experts.scales_inputs ? Matrix<const float>(routes.weight.view) : Matrix<const float>{}, read,
      stream);
  in_waves(experts, layer, false, [&](std::size_t first, std::size_t end) {
    std::vector<Product> products;
    for (std::size_t e = first; e < end; ++e) {
      const RowRange rows = routes.rows_of(static_cast<std::int64_t>(e));
      if (rows.count == 0) continue;
      const Linear* linear = linears_of(experts, layer, e);
      std::int64_t column = 0;
      for (const LinearSpec& spec : one.in) {
        products.push_back({rows_of(read, rows), linear->weight, linear->bias,
                            rows_of(in, rows).col_range(column, spec.out_features)});
        column += spec.out_features;
        ++linear;
      }
    }
    linears(products, stream);
  });
  Tensor shared_in;
  if (experts.shared) {
    shared_in = scratch.part(read.size() + in.size(), x.rows, outputs(*experts.shared));
    project(experts.shared->in, layer, panel.shared, shared_in, stream);
  }
  const Activated<void> activated = panels(experts, y);
  activate(one, in, activated.sorted, stream);
  if (experts.shared) activate(*experts.shared, shared_in, activated.shared, stream);
}

void expert_activation(const Experts& experts, const Layer& layer, std::int64_t expert,
                       ConstTensor x, Tensor y, Tensor scratch, Stream& stream) {
  const Mlp& one = any(experts);
  const Tensor in = scratch.part(0, x.rows, outputs(one));
  const auto index = static_cast<std::size_t>(expert);
  const Linear* of_expert = linears_of(experts, layer, index);
  const std::shared_ptr<const void> here = bring(experts, layer, false, index, index + 1);
  std::int64_t column = 0;
  for (const LinearSpec& spec : one.in) {
    linear(x, of_expert->weight, of_expert->bias, in.col_range(column, spec.out_features), stream);
    column += spec.out_features;
    ++of_expert;
  }
  activate(one, in, y, stream);
}

void expert_output(const Experts& experts, const Layer& layer, ConstTensor x, const Routes& routes,
                   Tensor z, Tensor scratch, Stream& stream) {
  const Activated<const void> activated = panels(experts, x);
  const Tensor outputs_of_experts = scratch.part(z.size(), activated.sorted.rows, z.cols);
  in_waves(experts, layer, true, [&](std::size_t first, std::size_t end) {
    std::vector<Product> products;
    for (std::size_t e = first; e < end; ++e) {
      const RowRange rows = routes.rows_of(static_cast<std::int64_t>(e));
      if (rows.count == 0) continue;
      const Linear& out = linears_of(experts, layer, e)[any(experts).in.size()];
      products.push_back({rows_of(activated.sorted, rows), out.weight, out.bias,
                          rows_of(outputs_of_experts, rows)});
    }
    linears(products, stream);
  });
  if (experts.shared) {
    const Linear& out = layer.linear(experts.shared->out);
    linear(activated.shared, out.weight, out.bias, z, stream);
    if (experts.after_shared) normed(experts.after_shared, layer, z, z, stream);
  }
  const bool apart = experts.shared && experts.after;
  const Tensor sum = apart ? scratch.part(z.size() + outputs_of_experts.size(), z.rows, z.cols) : z;
  combine_rows(
      outputs_of_experts, routes.place,
      experts.scales_inputs ? Matrix<const float>{} : Matrix<const float>(routes.weight.view),
      experts.shared && !apart ? ConstTensor(z) : ConstTensor{}, routes.shared.view, sum, stream);
  if (experts.after) normed(experts.after, layer, sum, sum, stream);
  if (apart) add_scaled(sum, 1.0f, z, stream);
}

ConstTensor group_rows(const Step& step, const Group& group, ConstTensor input,
                       const Routes* routes, Buffer& memory, Stream& stream) {
  const Panel& shape = step.panels.at(group.panel);
  const ConstTensor panel = panel_of(step, group.panel, input).col_range(group.begin, group.width);
  if (group.expert < 0) return panel;
  require(routes != nullptr, "group_rows: an expert's rows follow from the routes");
  const RowRange rows = routes->rows_of(group.expert);
  if (shape.sorted) return rows_of(panel, rows);
  const std::int64_t k = routes->expert.view.cols;
  const std::size_t bytes =
      static_cast<std::size_t>(rows.count * group.width) * size_of(panel.dtype);
  if (memory.bytes() < bytes) {
    memory = {};  // not both at once
    memory = Buffer(bytes, stream);
  }
  const Tensor gathered(memory.data(), panel.dtype, rows.count, group.width);
  if (rows.count == 0) return gathered;
  gather_rows(panel,
              Matrix<const std::int32_t>(routes->source.view).col_range(rows.begin, rows.count), k,
              group.weighted ? Matrix<const float>(routes->weight.view) : Matrix<const float>{},
              gathered, stream);
  return gathered;
}

}  // namespace qpipe
