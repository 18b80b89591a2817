#include "stages/activations.h"

#include <algorithm>
#include <cmath>

#include "kernels/activation.h"
#include "kernels/hessian.h"
#include "launch/share.h"
#include "stages/transfer.h"

namespace qpipe {

Blocking cut_samples(std::int64_t samples, std::int64_t seqlen, std::int64_t micro_batch) {
  return {samples, seqlen,
          std::clamp<std::int64_t>(micro_batch / seqlen, 1, std::max<std::int64_t>(samples, 1))};
}

std::vector<std::int64_t> block_rows(const Blocking& blocking, const RowRange& owned) {
  std::vector<std::int64_t> rows;
  for (std::int64_t block = owned.begin; block < owned.begin + owned.count; ++block)
    rows.push_back(blocking.block_size(block) * blocking.seqlen);
  return rows;
}

bool is_sampled(const Blocking& blocking, std::int64_t block, std::int64_t tokens) {
  const std::int64_t blocks = blocking.blocks();
  const std::int64_t wanted =
      tokens == 0 ? blocks
                  : std::clamp<std::int64_t>(tokens / (blocking.block_samples * blocking.seqlen), 1,
                                             blocks);
  return (block + 1) * wanted / blocks > block * wanted / blocks;
}

std::int64_t sampled_tokens(const Blocking& blocking, std::int64_t tokens) {
  std::int64_t samples = 0;
  for (std::int64_t b = 0; b < blocking.blocks(); ++b)
    samples += is_sampled(blocking, b, tokens) ? blocking.block_size(b) : 0;
  return samples * blocking.seqlen;
}

std::vector<std::size_t> sampled_blocks(const Activations& activations, std::int64_t tokens) {
  std::vector<std::size_t> locals;
  for (std::size_t b = 0; b < activations.blocks(); ++b)
    if (is_sampled(activations.blocking, activations.block(b), tokens)) locals.push_back(b);
  return locals;
}

namespace {

Activations without_scratch(const Architecture& architecture, const Blocking& blocking,
                            const RowRange& owned, const Places& places, Stream& stream) {
  Activations result;
  result.blocking = blocking;
  result.owned = owned;
  const std::vector<std::int64_t> rows = block_rows(blocking, result.owned);
  result.hidden =
      BlockStore(rows, architecture.stream_width(), places.hidden, places.folder, stream);
  const auto add_input = [&](std::int64_t width, Place place) {
    result.inputs.push_back({BlockStore(rows, width, place, places.folder, stream),
                             width,
                             Array<float>(1, width, stream),
                             {}});
  };
  if (places.inputs_kept)
    for (std::size_t step = 0; step < most_steps(architecture); ++step)
      add_input(widest_input(architecture, step), Place::device);
  else
    add_input(widest_input(architecture), places.input);
  result.routes.resize(result.blocks());
  result.output_maximum = Array<float>(1, architecture.hidden, stream);
  begin_output(result, stream);
  return result;
}

}  // namespace

Activations make_activations(const Architecture& architecture, const Blocking& blocking, int rank,
                             int ranks, const Places& places, Stream& stream) {
  Activations result = without_scratch(
      architecture, blocking, contiguous_share(blocking.blocks(), rank, ranks), places, stream);
  result.scratch = TensorArray(stream.compute_dtype(), blocking.block_tokens(),
                               scratch_width(architecture), stream);
  return result;
}

Activations make_activations_beside(const Architecture& architecture, const Activations& first,
                                    const Places& places, Stream& stream) {
  return without_scratch(architecture, first.blocking, first.owned, places, stream);
}

void make_spare(Activations& activations, const Places& places, Stream& stream) {
  const BlockStore& hidden = activations.hidden;
  if (activations.spare.width() == hidden.width()) return;  // a rank may own no block
  activations.spare = BlockStore(block_rows(activations.blocking, activations.owned),
                                 hidden.width(), hidden.place(), places.folder, stream);
}

void begin_output(Activations& activations, Stream& stream) {
  fill_zero(activations.output_maximum.view.data, activations.output_maximum.memory.bytes(),
            stream);
}

void measure_output(const Block& block, const Activations& activations, Stream& stream) {
  // Without what the stream carries beside it: later layers may not have written that yet.
  const Matrix<float> maximum = activations.output_maximum.view;
  column_max_abs(block.hidden.col_range(0, maximum.cols), maximum, stream);
}

double largest_output(const Activations& activations, Comm& comm, Stream& stream) {
  double largest = 0.0;
  for (const float x : download_matrix(activations.output_maximum.view, stream))
    largest = x <= largest ? largest : std::isnan(x) ? HUGE_VAL : double{x};
  for (const double other : comm.all_gather({largest})) largest = std::max(largest, other);
  return largest;
}

void visit(Activations& activations, Access hidden, Access input, const BlockWork& work,
           Stream& stream) {
  const std::vector<std::size_t> order = all_blocks(activations.blocks());
  BlockPass hidden_pass(activations.hidden, hidden, order, activations.hidden.width(), stream);
  BlockPass input_pass(activations.input().blocks, input, order, activations.input().width, stream);
  for (const std::size_t local : order) {
    Block block{hidden_pass.begin(), input_pass.begin(), &activations.routes.at(local)};
    work(local, block);
    hidden_pass.end(block.hidden.cols);
    input_pass.end(block.input.cols);
  }
  hidden_pass.finish();
  input_pass.finish();
}

void visit_inputs(const Activations& activations, const std::vector<std::size_t>& locals,
                  const InputWork& work, Stream& stream) {
  const StepInput& input = activations.input();
  BlockPass pass(input.blocks, locals, input.width, stream);
  for (const std::size_t local : locals) {
    work(local, pass.begin());
    pass.end(input.width);
  }
  pass.finish();
}

void visit_inputs(const Activations& activations, const InputWork& work, Stream& stream) {
  visit_inputs(activations, all_blocks(activations.blocks()), work, stream);
}

namespace {

void forget_maxima(const StepInput& input, Stream& stream) {
  fill_zero(input.maximum.view.data, static_cast<std::size_t>(input.step.columns()) * sizeof(float),
            stream);
}

void measure_input(const StepInput& input, ConstTensor block, Stream& stream) {
  for (std::size_t p = 0; p < input.step.panels.size(); ++p) {
    const ConstTensor panel = panel_of(input.step, p, block);
    column_max_abs(panel, input.maximum.view.col_range(input.step.first_column(p), panel.cols),
                   stream);
  }
}

// Makes the next step's input, block after block, and takes its columns' maxima on the way.
void make_input(Activations& activations, const Step& next, Access hidden, Access input,
                const BlockWork& work, Stream& stream) {
  StepInput& made = activations.input();
  made.step = next;
  forget_maxima(made, stream);
  const auto work_and_measure = [&](std::size_t local, Block& block) {
    work(local, block);
    measure_input(made, block.input, stream);
  };
  visit(activations, hidden, input, work_and_measure, stream);
  made.width = next.width;
}

}  // namespace

void start_layer(const Layer& layer, Activations& activations, Stream& stream) {
  activations.current = 0;
  const std::vector<Step> steps = layer_steps(*layer.spec);
  if (activations.keeps_inputs() || steps.empty()) return;
  const auto work = [&](std::size_t, Block& block) { start_layer(layer, block, stream); };
  make_input(activations, steps.front(), Access::read, Access::write, work, stream);
}

void advance(const Layer& layer, const DecoderTables& tables, const std::vector<Step>& steps,
             std::size_t index, Activations& activations, Stream& stream) {
  const bool last = index + 1 == steps.size();
  if (activations.keeps_inputs()) {
    require(!last, "advance: kept inputs have the layer's output behind them");
    activations.current = index + 1;
    return;
  }
  if (last) begin_output(activations, stream);
  const auto work = [&](std::size_t, Block& block) {
    advance(layer, tables, steps, index, activations.blocking.seqlen, block, activations.scratch,
            stream);
    if (last) measure_output(block, activations, stream);
  };
  const Step& step = steps.at(index);
  if (last) return visit(activations, step.hidden, step.input, work, stream);
  make_input(activations, steps[index + 1], step.hidden, step.input, work, stream);
}

void forward_layer(const Layer& layer, const DecoderTables& tables, Activations& activations,
                   Stream& stream) {
  begin_output(activations, stream);
  const auto work = [&](std::size_t, Block& block) {
    forward_layer(layer, tables, activations.blocking.seqlen, block, activations.scratch, stream);
    measure_output(block, activations, stream);
  };
  visit(activations, Access::update, Access::scratch, work, stream);
}

void begin_keeping(const Layer& layer, Activations& activations, Stream& stream) {
  begin_output(activations, stream);
  const std::vector<Step> steps = layer_steps(*layer.spec);
  for (std::size_t i = 0; i < activations.inputs.size(); ++i) {
    StepInput& input = activations.inputs[i];
    if (i >= steps.size()) continue;
    input.width = steps[i].width;
    input.step = steps[i];
    forget_maxima(input, stream);
  }
}

void forward_and_keep(const Layer& layer, const DecoderTables& tables, std::size_t local,
                      Block& block, Activations& activations, Stream& stream) {
  block.routes = &activations.routes.at(local);
  start_layer(layer, block, stream);
  const std::vector<Step> steps = layer_steps(*layer.spec);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    StepInput& input = activations.inputs.at(i);
    measure_input(input, block.input, stream);
    write_block(input.blocks, local, block.input, stream);
    advance(layer, tables, steps, i, activations.blocking.seqlen, block, activations.scratch,
            stream);
  }
  measure_output(block, activations, stream);
}

}  // namespace qpipe
