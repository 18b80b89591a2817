#include "stages/cross_moments.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/add.h"
#include "kernels/cross_moment.h"
#include "stages/transfer.h"

namespace qpipe {

namespace {

struct Units {
  Array<std::int32_t> difference;  // [1, d]: exponents that bound |x − x̃|
  Array<std::int32_t> input;       // and |x̃|
  int log2_tokens = 0;
};

// Of all ranks' tokens, for the columns of the group.
std::vector<float> largest(const Activations& activations, const Group& group, Comm& comm,
                           Stream& stream) {
  const StepInput& input = activations.input();
  const Matrix<float> maximum =
      input.maximum.view.col_range(input.step.first_column(group.panel) + group.begin, group.width);
  comm.all_reduce_max({maximum.data, 1, group.width}, stream);
  return download_matrix(Matrix<const float>(maximum), stream);
}

Array<std::int32_t> exponents(const std::vector<float>& bounds, const std::string& what,
                              Stream& stream) {
  const auto d = static_cast<std::int64_t>(bounds.size());
  std::vector<std::int32_t> exponent(bounds.size());
  try {
    hessian_exponents({bounds.data(), 1, d}, {exponent.data(), 1, d});
  } catch (const std::domain_error& fault) {
    throw std::domain_error(what + ", in the original model: " + fault.what());
  }
  return upload(exponent, stream);
}

// |x − x̃| is at most the sum of what both are.
Units units_of(const Activations& original, const Activations& quantized, const Group& group,
               const std::string& what, Comm& comm, Stream& stream) {
  const std::vector<float> input = largest(quantized, group, comm, stream);
  std::vector<float> difference = largest(original, group, comm, stream);
  for (std::size_t i = 0; i < input.size(); ++i) difference[i] += input[i];
  return {exponents(difference, what, stream), exponents(input, what, stream),
          quantized.blocking.log2_tokens()};
}

// The rows of a block that count to each half. Blocks of one sample count to one after the other.
std::array<RowRange, 2> halves_of(const Blocking& blocking, std::int64_t block) {
  const std::int64_t samples = blocking.block_size(block);
  const std::int64_t first = (samples + 1) / 2 * blocking.seqlen;
  const RowRange front{0, first};
  const RowRange back{first, samples * blocking.seqlen - first};
  return block % 2 == 0 ? std::array{front, back} : std::array{back, front};
}

}  // namespace

Array<float> sum_of_halves(CrossMoments&& moments, Stream& stream) {
  add_scaled(moments.halves[1].view, 1.0f, moments.halves[0].view, stream);
  moments.halves[1] = {};
  return std::move(moments.halves[0]);
}

CrossMoments cross_moments(const Activations& original, const Activations& quantized,
                           const Group& group, const std::string& what, std::int64_t sampled,
                           const Places& places, Comm& comm, Stream& stream) {
  require(group.expert < 0, "cross_moments: experts' inputs have other rows in each model");
  const std::int64_t d = group.width;
  const Units units = units_of(original, quantized, group, what, comm, stream);
  const std::int64_t tokens = sampled_tokens(quantized.blocking, sampled);
  const std::int64_t width =
      places.hessian_panel_columns > 0 ? std::min(places.hessian_panel_columns, d) : d;
  const std::vector<std::size_t> blocks = sampled_blocks(quantized, sampled);
  const Step& step = quantized.input().step;
  CrossMoments result{{Array<float>(d, d, stream), Array<float>(d, d, stream)}};
  const TensorArray difference(stream.compute_dtype(), quantized.blocking.block_tokens(), d,
                               stream);
  const Array<std::int64_t> memory(2 * d, width, stream);
  for (std::int64_t begin = 0; begin < d; begin += width) {
    const std::int64_t count = std::min(width, d - begin);
    const std::array<Matrix<std::int64_t>, 2> sums{
        Matrix<std::int64_t>(memory.view.data, d, count),
        Matrix<std::int64_t>(memory.view.data + d * count, d, count)};
    fill_zero(memory.view.data, static_cast<std::size_t>(2 * d * count) * sizeof(std::int64_t),
              stream);
    BlockPass original_pass(original.input().blocks, blocks, original.input().width, stream);
    BlockPass quantized_pass(quantized.input().blocks, blocks, quantized.input().width, stream);
    for (const std::size_t local : blocks) {
      const auto read = [&](ConstTensor block) {
        return panel_of(step, group.panel, block).col_range(group.begin, d);
      };
      const ConstTensor x = read(original_pass.begin());
      const ConstTensor x_tilde = read(quantized_pass.begin());
      const Tensor moved = difference.view.row_range(0, x.rows);
      subtract(x, x_tilde, moved, stream);
      const auto halves = halves_of(quantized.blocking, quantized.block(local));
      for (std::size_t h = 0; h < sums.size(); ++h)
        accumulate_cross(moved.row_range(halves[h].begin, halves[h].count),
                         x_tilde.row_range(halves[h].begin, halves[h].count), units.difference,
                         units.input, units.log2_tokens, begin, sums[h], stream);
      original_pass.end(original.input().width);
      quantized_pass.end(quantized.input().width);
    }
    original_pass.finish();
    quantized_pass.finish();
    comm.all_reduce_sum({memory.view.data, 1, 2 * d * count}, stream);
    for (std::size_t h = 0; h < sums.size(); ++h)
      finish_cross(sums[h], units.difference, units.input, units.log2_tokens, tokens, begin,
                   result.halves[h], stream);
  }
  return result;
}

}  // namespace qpipe
