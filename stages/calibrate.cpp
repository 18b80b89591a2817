#include "stages/calibrate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>

#include "kernels/column_statistics.h"
#include "kernels/diagonal.h"
#include "kernels/hessian.h"

namespace qpipe {

namespace {

// The units of the fixed-point sums over all ranks' tokens (kernels/hessian.h).
struct FixedPoint {
  Array<std::int32_t> exponent;  // [1, d]
  std::vector<std::int32_t> host_exponent;
  int log2_tokens = 0;
  float largest = 0.0f;  // |x|
};

// The first sample of all ranks with an input that hessian_exponents refuses. Collective.
std::int64_t first_sample_refused(const Activations& activations, Comm& comm, Stream& stream) {
  const Blocking& blocking = activations.blocking;
  std::int64_t first = blocking.samples;
  const auto refused = [](float x) {
    return !(std::fabs(x) <= 0x1p48f);
  };  // the bound of hessian_exponents
  const auto search = [&](std::size_t local, ConstTensor input) {
    if (first != blocking.samples) return;
    std::vector<unsigned char> bytes(static_cast<std::size_t>(input.bytes()));
    copy_to_host(bytes.data(), input.data, bytes.size(), stream);
    const auto first_in = [&](const auto* values) {
      const auto* end = values + input.size();
      const auto* bad = std::find_if(values, end, [&](auto x) { return refused(to_float(x)); });
      if (bad != end)
        first = activations.first_sample(local) + (bad - values) / input.cols / blocking.seqlen;
    };
    if (input.dtype == DType::f32)
      first_in(reinterpret_cast<const float*>(bytes.data()));
    else
      first_in(reinterpret_cast<const bf16*>(bytes.data()));
  };
  visit_inputs(activations, search, stream);
  for (const double other : comm.all_gather({static_cast<double>(first)}))
    first = std::min(first, static_cast<std::int64_t>(other));
  return first;
}

FixedPoint choose_units(const Activations& activations, const Group& group, const std::string& what,
                        Comm& comm, Stream& stream) {
  const std::int64_t d = group.width;
  const Matrix<float> maximum = activations.input().maximum.view.col_range(group.begin, d);
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
    throw std::domain_error(what + ": " + fault.what() + ", first in calibration sample " +
                            std::to_string(first_sample_refused(activations, comm, stream)));
  }
  copy_to_device(units.exponent.view.data, units.host_exponent.data(),
                 units.exponent.memory.bytes(), stream);
  units.log2_tokens = static_cast<int>(
      std::bit_width(static_cast<std::uint64_t>(activations.blocking.tokens() - 1)));
  return units;
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

Group whole_input(const Activations& activations) { return {0, activations.input().width, {}}; }

std::int64_t hessian_sum_elements(std::int64_t d, std::int64_t columns) {
  const std::vector<SumPanel> panels = sum_panels(d, 0, std::min(columns, d));
  return panels.empty() ? 0 : panels.back().end_element();
}

Hessian calibrate(const Activations& activations, const Group& group, const std::string& what,
                  std::int64_t sampled, const Places& places, Comm& comm, Stream& stream) {
  const FixedPoint units = choose_units(activations, group, what, comm, stream);
  const std::int64_t d = units.exponent.view.cols;
  const std::int64_t tokens = sampled_tokens(activations.blocking, sampled);
  const std::vector<std::size_t> blocks = sampled_blocks(activations, sampled);
  const std::int64_t width =
      places.hessian_panel_columns > 0 ? std::min(places.hessian_panel_columns, d) : d;
  Hessian result;
  result.largest_input = units.largest;
  result.diagonal.resize(static_cast<std::size_t>(d));
  if (!places.hessian_on_host) result.matrix = Array<float>(d, d, stream);
  {
    Array<std::int64_t> memory(1, hessian_sum_elements(d, width),
                               stream);  // of the first range, the largest
    for (std::int64_t begin = 0; begin < d; begin += width) {
      const std::vector<SumPanel> panels = sum_panels(d, begin, std::min(d, begin + width));
      const Matrix<std::int64_t> all(memory.view.data, 1, panels.back().end_element());
      fill_zero(all.data, static_cast<std::size_t>(all.size()) * sizeof(std::int64_t), stream);
      const auto add = [&](std::size_t, ConstTensor input) {
        const ConstTensor x = input.col_range(group.begin, d);
        for (const SumPanel& panel : panels)
          accumulate_hessian(x, units.exponent, units.log2_tokens, panel.begin, panel.in(all),
                             stream);
      };
      visit_inputs(activations, blocks, add, stream);
      comm.all_reduce_sum(all, stream);
      for (const SumPanel& panel : panels)
        if (places.hessian_on_host)
          finish_on_host(panel.in(all), panel.begin, units, tokens, result, stream);
        else
          finish_hessian(panel.in(all), units.exponent, units.log2_tokens, tokens, panel.begin,
                         result.matrix, stream);
    }
  }
  if (places.hessian_on_host) return result;
  Array<float> on_device(1, d, stream);
  diagonal(result.matrix, on_device, stream);
  copy_to_host(result.diagonal.data(), on_device.view.data, on_device.memory.bytes(), stream);
  return result;
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
  const auto add = [&](std::size_t, ConstTensor input) {
    accumulate_column_abs(input.col_range(group.begin, group.width), units.exponent,
                          units.log2_tokens, sum, stream);
  };
  visit_inputs(activations, add, stream);
  comm.all_reduce_sum(sum, stream);
  std::vector<std::int64_t> host(units.host_exponent.size());
  copy_to_host(host.data(), sum.view.data, sum.memory.bytes(), stream);
  std::vector<double> mean(host.size());
  for (std::size_t i = 0; i < mean.size(); ++i)
    mean[i] =
        std::ldexp(static_cast<double>(host[i]), units.host_exponent[i] + units.log2_tokens - 62) /
        static_cast<double>(activations.blocking.tokens());
  return mean;
}

}  // namespace qpipe
