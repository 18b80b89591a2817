#include "stages/layer.h"

#include <algorithm>
#include <numeric>

#include "kernels/linear.h"
#include "kernels/norm.h"

namespace qpipe {

namespace {

std::size_t attention_out_index(const Architecture& a) { return a.qkv.size(); }
std::size_t mlp_in_index(const Architecture& a) { return a.qkv.size() + 1; }
std::size_t mlp_out_index(const Architecture& a) { return a.qkv.size() + 1 + a.mlp_in.size(); }

std::vector<std::size_t> consecutive(std::size_t begin, std::size_t count) {
  std::vector<std::size_t> indices(count);
  std::iota(indices.begin(), indices.end(), begin);
  return indices;
}

std::int64_t mlp_width(const Architecture& a) {
  std::int64_t width = 0;
  for (const LinearSpec& linear : a.mlp_in) width += linear.out_features;
  return width;
}

// The view of the block's input memory for another width.
Tensor input_of_width(const Block& block, std::int64_t width) {
  return {block.input.data, block.input.dtype, block.input.rows, width};
}

Tensor top_left(Tensor scratch, std::int64_t rows, std::int64_t cols) {
  return {scratch.data, scratch.dtype, rows, cols};
}

// Several linears of one input, outputs side by side.
void project(const Layer& layer, std::size_t begin, std::size_t count, ConstTensor x, Tensor y,
             Stream& stream) {
  std::int64_t column = 0;
  for (std::size_t i = begin; i < begin + count; ++i) {
    const Linear& linear_ = layer.linears[i];
    linear(x, linear_.weight, linear_.bias, y.col_range(column, linear_.weight.rows), stream);
    column += linear_.weight.rows;
  }
}

void add_to_hidden(const Linear& linear_, ConstTensor x, Tensor hidden, Stream& stream) {
  linear_add(x, linear_.weight, linear_.bias, 1.0f, hidden, stream);
}

}  // namespace

std::vector<LinearSpec> all_linears(const Architecture& a) {
  std::vector<LinearSpec> linears = a.qkv;
  linears.push_back(a.attention_out);
  linears.insert(linears.end(), a.mlp_in.begin(), a.mlp_in.end());
  linears.push_back(a.mlp_out);
  return linears;
}

std::vector<Step> layer_steps(const Architecture& a) {
  Step attention_in{StepKind::attention_in, consecutive(0, a.qkv.size())};
  Step mlp_in{StepKind::mlp_in, consecutive(mlp_in_index(a), a.mlp_in.size())};
  if (a.shared_norm) {
    attention_in.linears.insert(attention_in.linears.end(), mlp_in.linears.begin(),
                                mlp_in.linears.end());
    mlp_in.linears.clear();
  }
  return {attention_in,
          {StepKind::attention_out, {attention_out_index(a)}},
          mlp_in,
          {StepKind::mlp_out, {mlp_out_index(a)}}};
}

std::vector<std::size_t> run_linears(const Architecture& a, StepKind kind) {
  switch (kind) {
    case StepKind::attention_in: return consecutive(0, a.qkv.size());
    case StepKind::attention_out: return {attention_out_index(a)};
    case StepKind::mlp_in: return consecutive(mlp_in_index(a), a.mlp_in.size());
    case StepKind::mlp_out: return {mlp_out_index(a)};
  }
  return {};
}

std::int64_t input_width(const Architecture& a, StepKind kind) {
  switch (kind) {
    case StepKind::attention_in:
    case StepKind::mlp_in: return a.hidden;
    case StepKind::attention_out: return a.attention_out.in_features;
    case StepKind::mlp_out: return a.mlp_out.in_features;
  }
  return 0;
}

std::int64_t widest_input(const Architecture& a) {
  return std::max({a.hidden, a.attention_out.in_features, a.mlp_out.in_features});
}

std::int64_t scratch_width(const Architecture& a) {
  return std::max({a.hidden, a.heads.width(), mlp_width(a)});
}

DecoderTables make_tables(const Architecture& a, std::int64_t seqlen, Stream& stream) {
  DecoderTables tables;
  if (a.rope.enabled) {
    const std::vector<float>& frequencies = a.rope.inverse_frequencies;
    tables.inverse_frequencies =
        Array<float>(1, static_cast<std::int64_t>(frequencies.size()), stream);
    copy_to_device(tables.inverse_frequencies.view.data, frequencies.data(),
                   frequencies.size() * sizeof(float), stream);
  }
  if (!a.key_bias_slopes.empty()) {
    // Softmax does not change when a row's scores shift, so slope · (key position) serves as
    // ALiBi's slope · (key − query).
    std::vector<float> bias;
    for (const float slope : a.key_bias_slopes)
      for (std::int64_t position = 0; position < seqlen; ++position) {
        const auto at = static_cast<float>(position);
        const float exact = slope * at;
        const float rounded = to_float(to_bf16(to_float(to_bf16(slope)) * to_float(to_bf16(at))));
        bias.push_back((a.key_bias_in_bf16 ? rounded : exact) * a.attention_scale);
      }
    tables.key_bias = Array<float>(a.heads.heads, seqlen, stream);
    copy_to_device(tables.key_bias.view.data, bias.data(), bias.size() * sizeof(float), stream);
  }
  return tables;
}

void apply_norm(const Architecture& a, const Norm& norm, ConstTensor x, Tensor y, Stream& stream) {
  switch (a.norm) {
    case NormKind::rms: return rms_norm(x, norm.weight, a.norm_eps, a.norm_offset, y, stream);
    case NormKind::layer: return layer_norm(x, norm.weight, norm.bias, a.norm_eps, 0.0f, y, stream);
  }
}

void start_layer(const Architecture& a, const Layer& layer, Block& block, Stream& stream) {
  block.input = input_of_width(block, a.hidden);
  apply_norm(a, layer.attention_norm, block.hidden, block.input, stream);
}

void attention_heads(const Architecture& a, const DecoderTables& tables, const Layer& layer,
                     std::int64_t seqlen, ConstTensor x, Tensor y, Tensor scratch, Stream& stream) {
  const Tensor qkv = top_left(scratch, x.rows, a.heads.width());
  project(layer, 0, a.qkv.size(), x, qkv, stream);
  const HeadLayout& heads = a.heads;
  if (!layer.q_norm.empty()) {  // families with q/k norms have q|k|v side by side
    rms_norm_heads(qkv.col_range(0, heads.heads * heads.head_dim), heads.heads, layer.q_norm,
                   a.norm_eps, a.norm_offset, stream);
    rms_norm_heads(qkv.col_range(heads.k_begin, heads.kv_heads * heads.head_dim), heads.kv_heads,
                   layer.k_norm, a.norm_eps, a.norm_offset, stream);
  }
  if (a.rope.enabled)
    rope(qkv, heads, tables.inverse_frequencies, a.rope.amplitude, a.rope.interleaved, seqlen,
         stream);
  AttentionOptions options;
  options.scale = a.attention_scale;
  options.window = a.window.at(static_cast<std::size_t>(layer.index));
  options.key_bias = tables.key_bias;
  attention(qkv, heads, seqlen, options, y, stream);
}

void mlp_activations(const Architecture& a, const Layer& layer, ConstTensor x, Tensor y,
                     Tensor scratch, Stream& stream) {
  const Tensor up = top_left(scratch, x.rows, mlp_width(a));
  project(layer, mlp_in_index(a), a.mlp_in.size(), x, up, stream);
  if (a.gated_mlp) return gated_activation(up, a.activation, y, stream);
  return activation(up, a.activation, y, stream);
}

void advance(const Architecture& a, const DecoderTables& tables, const Layer& layer, StepKind kind,
             std::int64_t seqlen, Block& block, Tensor scratch, Stream& stream) {
  const std::int64_t tokens = block.hidden.rows;
  switch (kind) {
    case StepKind::attention_in: {
      const ConstTensor x = block.input;
      block.input = input_of_width(block, a.attention_out.in_features);
      return attention_heads(a, tables, layer, seqlen, x, block.input, scratch, stream);
    }
    case StepKind::attention_out: {
      const Linear& out = layer.linears[attention_out_index(a)];
      if (a.residual == Residual::sequential) {
        add_to_hidden(out, block.input, block.hidden, stream);
        block.input = input_of_width(block, a.hidden);
        return apply_norm(a, layer.mlp_norm, block.hidden, block.input, stream);
      }
      // Parallel: the MLP reads the residual stream from before the attention is added.
      const Tensor mlp_input = top_left(scratch, tokens, a.hidden);
      apply_norm(a, a.shared_norm ? layer.attention_norm : layer.mlp_norm, block.hidden, mlp_input,
                 stream);
      add_to_hidden(out, block.input, block.hidden, stream);
      block.input = input_of_width(block, a.hidden);
      return copy_on_device(block.input.data, mlp_input.data,
                            static_cast<std::size_t>(mlp_input.bytes()), stream);
    }
    case StepKind::mlp_in: {
      const ConstTensor x = block.input;
      block.input = input_of_width(block, a.mlp_out.in_features);
      return mlp_activations(a, layer, x, block.input, scratch, stream);
    }
    case StepKind::mlp_out:
      return add_to_hidden(layer.linears[mlp_out_index(a)], block.input, block.hidden, stream);
  }
}

void forward_layer(const Architecture& a, const DecoderTables& tables, const Layer& layer,
                   std::int64_t seqlen, Block& block, Tensor scratch, Stream& stream) {
  start_layer(a, layer, block, stream);
  for (const StepKind kind : step_kinds)
    advance(a, tables, layer, kind, seqlen, block, scratch, stream);
}

}  // namespace qpipe
