#include "stages/rescale.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "kernels/activation.h"
#include "kernels/column_statistics.h"
#include "kernels/difference.h"
#include "kernels/gram_loss.h"
#include "kernels/linear.h"
#include "kernels/scaled_rounding.h"
#include "kernels/scaled_rounding_loss.h"
#include "launch/share.h"

namespace qpipe {

namespace {

GridOptions grid_of(const LinearSettings& s) { return {s.bits, s.symmetric, 0.0f}; }

Array<float> upload_rows(const std::vector<std::vector<float>>& rows, Stream& stream) {
  Array<float> array(static_cast<std::int64_t>(rows.size()),
                     static_cast<std::int64_t>(rows.front().size()), stream);
  for (std::size_t r = 0; r < rows.size(); ++r)
    copy_to_device(array.view.row(static_cast<std::int64_t>(r)), rows[r].data(),
                   rows[r].size() * sizeof(float), stream);
  return array;
}

// losses[c] = Σ over all ranks' rows of `own`, in the order of the ranks: the blocks' order,
// whoever owns them.
std::vector<double> add_in_block_order(const Array<double>& own, Comm& comm, Stream& stream) {
  std::vector<double> host(static_cast<std::size_t>(own.view.size()));
  copy_to_host(host.data(), own.view.data, host.size() * sizeof(double), stream);
  const std::vector<double> all = comm.all_gather(host);
  const auto count = static_cast<std::size_t>(own.view.cols);
  std::vector<double> losses(count, 0.0);
  for (std::size_t i = 0; i < all.size(); ++i) losses[i % count] += all[i];
  return losses;
}

Array<double> zeros(std::int64_t rows, std::int64_t cols, Stream& stream) {
  Array<double> array(rows, cols, stream);
  fill_zero(array.view.data, array.memory.bytes(), stream);
  return array;
}

Matrix<double> element(const Array<double>& array, std::int64_t row, std::int64_t col) {
  return {array.view.row(row) + col, 1, 1};
}

// The output of what the pair is judged by, without residual and biases of its last linear.
// between: memory for the widest input of these steps.
void inspected_output(const Layer& layer, const DecoderTables& tables, Inspected inspected,
                      std::int64_t seqlen, ConstTensor x, const Routes* routes, Tensor between,
                      Tensor scratch, Matrix<float> y, Stream& stream) {
  bool add = false;
  for (const Part part : {Part::mixer, Part::mlp}) {
    if (!is_inspected(inspected, part)) continue;
    part_output(layer, tables, part, seqlen, x, routes, between, scratch, y, add, stream);
    add = true;
  }
}

// What reads the input that the pair divides: its one group, or with experts every token.
Group pair_group(const LayerSpec& spec, const ScalingPair& pair) {
  const Step step = layer_steps(spec).at(pair.step);
  Group group = step.groups.at(pair.groups.front());
  if (pair.groups.size() > 1) group.expert = -1;
  return group;
}

std::int64_t widest_step(const LayerSpec& spec) {
  std::int64_t width = 0;
  for (const Step& step : layer_steps(spec)) width = std::max(width, step.width);
  return width;
}

// Mean squared differences of the inspected output. Blocks outside, candidates inside: one
// reference output is held, and nothing waits.
std::vector<double> output_losses(const DecoderTables& tables, Layer& layer,
                                  const ScalingPair& pair,
                                  const std::vector<LinearSettings>& settings,
                                  const Activations& activations,
                                  const std::vector<std::vector<float>>& scales,
                                  std::int64_t search_tokens, Comm& comm, Stream& stream) {
  const Array<float> candidates = upload_rows(scales, stream);
  const Blocking& blocking = activations.blocking;
  const std::int64_t tokens = blocking.block_tokens();
  std::vector<TensorArray> trial(pair.linears.size());
  for (std::size_t i = 0; i < trial.size(); ++i) {
    const Tensor weight = layer.linears[pair.linears[i]].weight;
    if (!settings[i].skip) trial[i] = TensorArray(weight.dtype, weight.rows, weight.cols, stream);
  }
  const auto swap_weights = [&] {
    for (std::size_t i = 0; i < trial.size(); ++i)
      if (!settings[i].skip) std::swap(layer.linears[pair.linears[i]].weight, trial[i].view);
  };
  TensorArray between(stream.compute_dtype(), tokens, widest_step(*layer.spec), stream);
  Array<float> reference(tokens, layer.spec->hidden, stream);
  Array<float> output(tokens, layer.spec->hidden, stream);
  const Array<double> total = zeros(activations.owned.count, candidates.view.rows, stream);
  const auto try_candidates = [&](std::size_t b, ConstTensor x) {
    const Matrix<float> expected = reference.view.row_range(0, x.rows);
    const Matrix<float> got = output.view.row_range(0, x.rows);
    const auto run = [&](Matrix<float> y) {
      inspected_output(layer, tables, pair.inspected, blocking.seqlen, x,
                       activations.routes.empty() ? nullptr : &activations.routes.at(b), between,
                       activations.scratch, y, stream);
    };
    run(expected);
    for (std::int64_t c = 0; c < candidates.view.rows; ++c) {
      for (std::size_t i = 0; i < trial.size(); ++i)
        if (!settings[i].skip)
          scaled_rounding(layer.linears[pair.linears[i]].stored, candidates.view.row_range(c, 1),
                          settings[i].group_columns(x.cols), grid_of(settings[i]), trial[i].view,
                          stream);
      swap_weights();
      run(got);
      swap_weights();
      add_squared_difference(expected, got, element(total, static_cast<std::int64_t>(b), c),
                             stream);
    }
  };
  visit_inputs(activations, sampled_blocks(activations, search_tokens), try_candidates, stream);
  std::vector<double> losses = add_in_block_order(total, comm, stream);
  for (double& loss : losses)
    loss /= static_cast<double>(sampled_tokens(blocking, search_tokens) * layer.spec->hidden);
  return losses;
}

// Every n-th row, at least `wanted` of them if there are so many; all for 0.
ConstTensor sampled_rows(ConstTensor w, std::int64_t wanted) {
  const std::int64_t step = wanted == 0 ? 1 : std::max<std::int64_t>(1, w.rows / wanted);
  return {w.data, w.dtype, (w.rows + step - 1) / step, w.cols, w.stride * step};
}

// Linears that share a Hessian, with their settings.
struct Judged {
  std::vector<const Linear*> linears;
  std::vector<LinearSettings> settings;
};

// Σ over the linears of tr(ΔW H ΔWᵀ), each from some of its rows.
std::vector<double> gram_losses(const Judged& judged, const Hessian& hessian,
                                const std::vector<std::vector<float>>& scales,
                                std::int64_t search_rows, Comm& comm, Stream& stream) {
  const Array<float> candidates = upload_rows(scales, stream);
  const std::int64_t d = candidates.view.cols;
  std::vector<ConstTensor> sampled;
  std::vector<std::int64_t> rows;
  for (std::size_t i = 0; i < judged.linears.size(); ++i) {
    sampled.push_back(sampled_rows(judged.linears[i]->stored, search_rows));
    rows.push_back(judged.settings[i].skip ? 0 : sampled.back().rows);
  }
  const auto shares = share_rows(rows, gram_row_block, comm.size());
  const GramMatrix gram = gram_matrix(hessian.matrix, stream);
  std::vector<Array<double>> blocks;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const LinearSettings& settings = judged.settings[i];
    const RowRange mine = shares[i][static_cast<std::size_t>(comm.rank())];
    blocks.emplace_back((mine.count + gram_row_block - 1) / gram_row_block, candidates.view.rows,
                        stream);
    scaled_rounding_losses(sampled[i].row_range(mine.begin, mine.count), candidates,
                           settings.group_columns(d), grid_of(settings), gram, gram_row_block,
                           blocks[i], stream);
  }
  std::vector<double> losses(scales.size(), 0.0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::vector<double> of_sampled = add_in_block_order(blocks[i], comm, stream);
    const double weight =
        static_cast<double>(judged.linears[i]->stored.rows) / static_cast<double>(sampled[i].rows);
    for (std::size_t c = 0; c < losses.size(); ++c) losses[c] += weight * of_sampled[c];
  }
  return losses;
}

// The same of all of the pair's groups: an output of an expert counts as often as a token meets it.
std::vector<double> gram_losses(const Layer& layer, const ScalingPair& pair,
                                const std::vector<LinearSettings>& settings,
                                const std::vector<Hessian*>& hessians, std::int64_t all_tokens,
                                const std::vector<std::vector<float>>& scales,
                                std::int64_t search_rows, Comm& comm, Stream& stream) {
  const Step step = layer_steps(*layer.spec).at(pair.step);
  std::vector<double> losses(scales.size(), 0.0);
  std::size_t next = 0;  // of pair.linears
  for (std::size_t g = 0; g < pair.groups.size(); ++g) {
    Judged judged;
    for (std::size_t i = 0; i < step.groups.at(pair.groups[g]).linears.size(); ++i, ++next) {
      judged.linears.push_back(&layer.linears[pair.linears[next]]);
      judged.settings.push_back(settings[next]);
    }
    const bool judges = std::any_of(judged.settings.begin(), judged.settings.end(),
                                    [](const LinearSettings& s) { return !s.skip; });
    Hessian& hessian = *hessians.at(g);
    if (!judges || hessian.tokens == 0) continue;
    bring_to_device(hessian, stream);
    const double share = pair.groups.size() == 1 ? 1.0
                                                 : static_cast<double>(hessian.tokens) /
                                                       static_cast<double>(all_tokens);
    const std::vector<double> of_group =
        gram_losses(judged, hessian, scales, search_rows, comm, stream);
    for (std::size_t c = 0; c < losses.size(); ++c) losses[c] += share * of_group[c];
    leave_device(hessian);
  }
  return losses;
}

}  // namespace

std::vector<double> mean_relative_magnitude(const Layer& layer, const ScalingPair& pair,
                                            const std::vector<LinearSettings>& settings,
                                            Stream& stream) {
  const std::int64_t d = layer.linears[pair.linears.front()].stored.cols;
  Array<std::int64_t> sum(1, d, stream);
  fill_zero(sum.view.data, sum.memory.bytes(), stream);
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < pair.linears.size(); ++i) {
    if (settings[i].skip) continue;
    const ConstTensor stored = layer.linears[pair.linears[i]].stored;
    accumulate_relative_magnitude(stored, settings[i].group_columns(d), sum, stream);
    rows += stored.rows;
  }
  std::vector<std::int64_t> host(static_cast<std::size_t>(d));
  copy_to_host(host.data(), sum.view.data, sum.memory.bytes(), stream);
  std::vector<double> mean;
  for (const std::int64_t value : host)
    mean.push_back(static_cast<double>(value) * relative_magnitude_unit /
                   static_cast<double>(rows));
  return mean;
}

std::vector<std::vector<float>> candidate_scales(const std::vector<double>& activation,
                                                 const std::vector<double>& weight,
                                                 const ScaleSearch& options) {
  const std::size_t d = activation.size();
  const double step = 1.0 / static_cast<double>(options.grid);
  std::vector<std::vector<float>> candidates(static_cast<std::size_t>(options.grid),
                                             std::vector<float>(d));
  // x^(i/n) and w^(1 − i/n) as products of n-th roots: a GPU waits meanwhile, and a power takes as
  // long as forty products.
  std::vector<double> root(d);
  std::vector<double> inverse_root(d);
  std::vector<double> x_power(d, 1.0);
  std::vector<double> w_power = weight;
  for (std::size_t c = 0; c < d; ++c) {
    root[c] = std::pow(activation[c], step);
    inverse_root[c] = weight[c] > 0.0 ? std::pow(weight[c], -step) : 1.0;
  }
  std::vector<double> s(d);
  for (std::int64_t i = 0; i < options.grid; ++i) {
    for (std::size_t c = 0; c < d; ++c) {
      s[c] = std::max(options.duo_scaling ? x_power[c] / (w_power[c] + 1e-4) : x_power[c], 1e-4);
      x_power[c] *= root[c];
      w_power[c] *= inverse_root[c];
    }
    const auto [low, high] = std::minmax_element(s.begin(), s.end());
    const double middle = std::sqrt(*low * *high);
    for (std::size_t c = 0; c < d; ++c) {
      const auto normalised = static_cast<float>(s[c] / middle);
      candidates[static_cast<std::size_t>(i)][c] =
          std::isfinite(normalised) && normalised > 0.0f ? normalised : 1.0f;
    }
  }
  return candidates;
}

bool needs_hessian(const ScaleSearch& search, const ScalingPair& pair) {
  return search.loss == ScaleLoss::gram || pair.inspected == Inspected::linears;
}

std::vector<double> scale_losses(const DecoderTables& tables, Layer& layer, const ScalingPair& pair,
                                 const std::vector<LinearSettings>& settings,
                                 const Activations& activations,
                                 const std::vector<Hessian*>& hessians,
                                 const std::vector<std::vector<float>>& scales,
                                 const ScaleSearch& options, Comm& comm, Stream& stream) {
  if (!needs_hessian(options, pair))
    return output_losses(tables, layer, pair, settings, activations, scales, options.tokens, comm,
                         stream);
  return gram_losses(layer, pair, settings, hessians, activations.blocking.tokens(), scales,
                     options.rows, comm, stream);
}

ScaledPair search_scale(const DecoderTables& tables, Layer& layer, const ScalingPair& pair,
                        const std::vector<LinearSettings>& settings, const Activations& activations,
                        const std::vector<Hessian*>& hessians, const ScaleSearch& options,
                        Comm& comm, Stream& stream) {
  const std::string& name = layer.linears[pair.linears.front()].name;
  const std::vector<double> activation =
      mean_magnitude(activations, pair_group(*layer.spec, pair), "input of " + name, comm, stream);
  const std::vector<double> weight = mean_relative_magnitude(layer, pair, settings, stream);
  std::vector<std::vector<float>> candidates = candidate_scales(activation, weight, options);
  const std::vector<double> losses = scale_losses(tables, layer, pair, settings, activations,
                                                  hessians, candidates, options, comm, stream);
  std::size_t best = losses.size();
  for (std::size_t c = 0; c < losses.size(); ++c)
    if (std::isfinite(losses[c]) && (best == losses.size() || losses[c] < losses[best])) best = c;
  if (best == losses.size())
    throw std::domain_error(
        name + ": no scale gives a finite loss; check the checkpoint for damaged weights");
  return {pair, std::move(candidates[best]),
          static_cast<double>(best) / static_cast<double>(options.grid), losses[best]};
}

}  // namespace qpipe
