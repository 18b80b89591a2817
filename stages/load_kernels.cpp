#include "stages/load_kernels.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

#include "kernels/hessian.h"
#include "stages/calibrate.h"

namespace qpipe {

namespace {

// Blocks of activations lie at 256-byte boundaries, too, on which cuBLAS's choices depend.
std::int64_t padded(std::int64_t elements) { return (elements + 127) / 128 * 128; }

std::int64_t elements(const TensorSpec& tensor) {
  return std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::int64_t{1},
                         std::multiplies<>());
}

std::int64_t largest_weight(const Architecture& a) {
  constexpr std::int64_t of_float = 2;  // elements of the compute type
  std::int64_t largest = 0;
  for (const LayerSpec& kind : a.kinds) {
    for (const LinearSpec& linear : layer_linears(kind))
      largest = std::max(largest, linear.out_features * linear.in_features);
    for (const TensorSpec& tensor : layer_tensors(kind))
      if (tensor.role == TensorRole::vector)
        largest = std::max(largest, of_float * elements(tensor));
  }
  return largest;
}

// Elements of: a weight, the residual stream, an input, scratch.
std::int64_t forward_elements(const Architecture& a, std::int64_t tokens) {
  return padded(largest_weight(a)) + padded(tokens * a.stream_width()) +
         padded(tokens * widest_input(a)) + padded(tokens * scratch_width(a));
}

// All linears, norms and constants in the same memory.
Layer blank_layer(const Architecture& a, std::size_t kind, Tensor weights) {
  const auto of_shape = [&](std::int64_t rows, std::int64_t cols) {
    return Tensor(weights.data, weights.dtype, rows, cols);
  };
  Layer layer;
  layer.kind = kind;
  layer.spec = &a.kinds[kind];
  for (const LinearSpec& spec : layer_linears(*layer.spec)) {
    Linear linear;
    linear.name = spec.name;
    linear.weight = of_shape(spec.out_features, spec.in_features);
    if (spec.bias) linear.bias = of_shape(1, spec.out_features);
    layer.linears.push_back(linear);
  }
  for (const NormTensors& norm : layer_norms(*layer.spec)) {
    Norm& blank = layer.norms[norm.name];
    if (!norm.weights.empty()) blank.weight = of_shape(norm.rows, norm.width);
    if (!norm.biases.empty()) blank.bias = of_shape(norm.rows, norm.width);
  }
  for (const TensorSpec& tensor : layer_tensors(*layer.spec)) {
    if (tensor.role == TensorRole::constant)
      layer.constants[tensor.name] = {of_shape(1, 1), {}, of_shape(1, 1), {}};
    if (tensor.role == TensorRole::vector)
      layer.vectors[tensor.name] = {static_cast<const float*>(weights.data), 1, elements(tensor)};
  }
  return layer;
}

}  // namespace

std::int64_t load_kernels_bytes(const Architecture& a, const Blocking& blocking) {
  const std::int64_t d = widest_input(a);
  constexpr std::int64_t element = 2;
  constexpr std::int64_t sum_element = 8;
  constexpr std::int64_t product_element = 4;
  return element * forward_elements(a, blocking.block_tokens()) +
         d * (sum_element * std::min(d, hessian_sum_panel) +
              product_element * std::min(d, hessian_panel(Backend::cuda)));
}

void load_kernels(const Architecture& a, const Blocking& blocking, Backend backend, int device,
                  std::size_t limit) {
  Stream stream(backend, device);
  stream.set_limit(limit);
  const std::int64_t tokens = blocking.block_tokens();
  TensorArray memory(stream.compute_dtype(), 1, forward_elements(a, tokens), stream);
  fill_zero(memory.view.data, memory.memory.bytes(), stream);
  std::int64_t taken = 0;
  const auto take = [&](std::int64_t rows, std::int64_t cols) {
    const Tensor part = memory.view.col_range(taken, rows * cols);
    taken += padded(rows * cols);
    return Tensor(part.data, part.dtype, rows, cols);
  };
  const Tensor weights = take(1, largest_weight(a));
  const Tensor hidden = take(tokens, a.stream_width());
  const Tensor input = take(tokens, widest_input(a));
  const Tensor scratch = take(tokens, scratch_width(a));
  const DecoderTables tables = make_tables(a, blocking.seqlen, stream);
  std::set<std::int64_t> widths;  // of Hessians
  for (std::size_t kind = 0; kind < a.kinds.size(); ++kind) {
    Block block{hidden, input};
    forward_layer(blank_layer(a, kind, weights), tables, blocking.seqlen, block, scratch, stream);
    for (const Step& step : layer_steps(a.kinds[kind]))
      for (const Group& group : step.groups) widths.insert(group.width);
  }
  for (const std::int64_t d : widths) {
    const Tensor x(input.data, input.dtype, tokens, d);
    Array<float> maximum(1, d, stream);
    fill_zero(maximum.view.data, maximum.memory.bytes(), stream);
    column_max_abs(x, maximum, stream);
    Array<std::int32_t> exponent(1, d, stream);
    fill_zero(exponent.view.data, exponent.memory.bytes(), stream);
    // cuBLAS chooses by a panel's rows.
    Array<std::int64_t> sum(d, std::min(d, hessian_sum_panel), stream);
    fill_zero(sum.view.data, sum.memory.bytes(), stream);
    for (std::int64_t begin = 0; begin < d; begin += hessian_sum_panel)
      accumulate_hessian(x, exponent, 40, begin,
                         {sum.view.data, d - begin, std::min(hessian_sum_panel, d - begin)},
                         stream);
  }
  stream.synchronize();
}

}  // namespace qpipe
