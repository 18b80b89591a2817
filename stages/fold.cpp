#include "stages/fold.h"

#include <algorithm>

#include "kernels/activation.h"
#include "kernels/diagonal.h"
#include "kernels/gram_loss.h"
#include "kernels/quantize_groups.h"
#include "kernels/scaling.h"
#include "launch/share.h"
#include "stages/transfer.h"

namespace qpipe {

namespace {

std::vector<float> download(ConstTensor tensor, Stream& stream) {
  Array<float> copy(tensor.rows, tensor.cols, stream);
  convert(tensor, copy.view, stream);
  std::vector<float> values(static_cast<std::size_t>(tensor.size()));
  copy_to_host(values.data(), copy.view.data, values.size() * sizeof(float), stream);
  return values;
}

std::vector<float> reciprocals(std::vector<float> values) {
  for (float& value : values) value = 1.0f / value;
  return values;
}

// b / s for the run of rows that the factors belong to.
std::vector<float> divided(std::vector<float> values, const std::vector<float>& scale,
                           std::int64_t first, float offset) {
  for (std::size_t i = 0; i < scale.size(); ++i) {
    float& value = values.at(static_cast<std::size_t>(first) + i);
    value = (offset + value) / scale[i] - offset;
  }
  return values;
}

}  // namespace

std::vector<LinearFactors> linear_factors(const Layer& layer,
                                          const std::vector<ScaledPair>& pairs) {
  std::vector<LinearFactors> factors(layer.linears.size());
  for (const ScaledPair& p : pairs) {
    for (const std::size_t i : p.pair.linears) factors[i].column = p.scale;
    if (p.pair.norm) continue;
    std::vector<float>& row = factors[p.pair.source_linear].row;
    row.assign(static_cast<std::size_t>(layer.linears[p.pair.source_linear].weight.rows), 1.0f);
    std::copy(p.scale.begin(), p.scale.end(), row.begin() + p.pair.source_first_row);
  }
  return factors;
}

Array<float> scaled_weight(const Linear& linear, const LinearFactors& factors, Stream& stream) {
  return scaled_rows(linear, factors, {0, linear.stored.rows}, stream);
}

Array<float> scaled_rows(const Linear& linear, const LinearFactors& factors, const RowRange& rows,
                         Stream& stream) {
  Array<float> weight(rows.count, linear.stored.cols, stream);
  const Array<float> row = upload(factors.row, stream);
  scale_weight(linear.stored.row_range(rows.begin, rows.count), upload(factors.column, stream),
               row.empty() ? row.view : row.view.col_range(rows.begin, rows.count), weight, stream);
  return weight;
}

void unscaled_weight_into(const QuantizedLinear& q, const LinearFactors& factors, Tensor weight,
                          Stream& stream) {
  Array<float> memory(std::min(gram_row_block, weight.rows), weight.cols, stream);
  const Array<std::int32_t> group_of = upload(q.group_of, stream);
  const Array<float> column = upload(reciprocals(factors.column), stream);
  const Array<float> row = upload(reciprocals(factors.row), stream);
  for (std::int64_t begin = 0; begin < weight.rows; begin += gram_row_block) {
    const std::int64_t count = std::min(gram_row_block, weight.rows - begin);
    const Matrix<float> scaled = memory.view.row_range(0, count);
    dequantize(q.code.view.row_range(begin, count), q.scale.view.row_range(begin, count),
               q.zero.view.row_range(begin, count), group_of, scaled, stream);
    scale_weight(scaled, column, row.empty() ? row.view : row.view.col_range(begin, count), scaled,
                 stream);
    convert(scaled, weight.row_range(begin, count), stream);
  }
}

void unscale_into(const Array<float>& scaled, const LinearFactors& factors, Tensor weight,
                  Stream& stream) {
  scale_weight(scaled.view, upload(reciprocals(factors.column), stream),
               upload(reciprocals(factors.row), stream), scaled, stream);
  convert(scaled.view, weight, stream);
}

std::vector<ChangedTensor> divided_vectors(const Architecture& a, const Layer& layer,
                                           const std::vector<ScaledPair>& pairs, Stream& stream) {
  std::vector<ChangedTensor> changed;
  const auto change = [&](const std::string& name, ConstTensor stored, const ScaledPair& p,
                          float offset) {
    if (!stored.empty())
      changed.push_back(
          {name, divided(download(stored, stream), p.scale, p.pair.source_first_row, offset)});
  };
  const std::string prefix = layer_prefix(a, layer.index);
  for (const ScaledPair& p : pairs) {
    if (!p.pair.norm) {
      const Linear& source = layer.linears[p.pair.source_linear];
      change(source.name + ".bias", source.stored_bias, p, 0.0f);
      continue;
    }
    const Norm& norm = layer.norms.at(p.pair.norm->name);
    const std::string name = prefix + p.pair.norm->name;
    change(name + ".weight", norm.stored_weight, p, p.pair.norm->offset);
    change(name + ".bias", norm.stored_bias, p, 0.0f);
  }
  return changed;
}

void divide_input(Hessian& hessian, const std::vector<float>& scale, Stream& stream) {
  bring_to_device(hessian, stream);
  hessian.panels.clear();
  unscale_hessian(hessian.matrix, upload(scale, stream), stream);
  Array<float> on_device(1, hessian.matrix.view.cols, stream);
  diagonal(hessian.matrix, on_device, stream);
  copy_to_host(hessian.diagonal.data(), on_device.view.data, on_device.memory.bytes(), stream);
}

double output_error(const Linear& linear, const LinearFactors& factors,
                    const QuantizedLinear& quantized, const Hessian& hessian, Comm& comm,
                    Stream& stream) {
  const std::int64_t d = linear.stored.cols;
  const RowRange mine = share_rows({linear.stored.rows}, gram_row_block, comm.size())
                            .front()[static_cast<std::size_t>(comm.rank())];
  const Array<float> column = upload(factors.column, stream);
  const Array<float> row = upload(factors.row, stream);
  const Array<std::int32_t> group_of = upload(quantized.group_of, stream);
  Array<float> exact(std::min(gram_row_block, mine.count), d, stream);
  Array<float> rounded(std::min(gram_row_block, mine.count), d, stream);
  const GramMatrix gram = gram_matrix(hessian.matrix, stream);
  const std::int64_t blocks = (mine.count + gram_row_block - 1) / gram_row_block;
  Array<double> total(1, blocks, stream);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = mine.begin + block * gram_row_block;
    const std::int64_t count = std::min(gram_row_block, mine.begin + mine.count - begin);
    const Matrix<float> w = exact.view.row_range(0, count);
    const Matrix<float> q = rounded.view.row_range(0, count);
    scale_weight(linear.stored.row_range(begin, count), column,
                 row.empty() ? row.view : row.view.col_range(begin, count), w, stream);
    dequantize(quantized.code.view.row_range(begin, count),
               quantized.scale.view.row_range(begin, count),
               quantized.zero.view.row_range(begin, count), group_of, q, stream);
    gram_loss(w, q, gram, total.view.col_range(block, 1), stream);
  }
  std::vector<double> host(static_cast<std::size_t>(blocks));
  copy_to_host(host.data(), total.view.data, host.size() * sizeof(double), stream);
  double sum = 0.0;
  for (const double value : comm.all_gather(host)) sum += value;
  return sum / static_cast<double>(linear.stored.rows);
}

}  // namespace qpipe
