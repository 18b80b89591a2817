#include "stages/embedding.h"

#include <cmath>
#include <numbers>

#include "kernels/activation.h"
#include "kernels/add.h"
#include "kernels/linear.h"
#include "kernels/norm.h"

namespace qpipe {

namespace {

// A factor that the model's code rounds to the type it computes in.
float in_type(DType dtype, float factor) {
  return dtype == DType::bf16 ? to_float(to_bf16(factor)) : factor;
}

// y = norm(multiplier · W[id]).
void embed_ids(const Embedding& e, const EmbeddingWeights& weights, const Array<std::int32_t>& ids,
               Tensor y, Stream& stream) {
  embed(ids, weights.tokens, in_type(y.dtype, e.multiplier), y, stream);
  if (e.norm) apply_norm(*e.norm, weights.norm, y, y, stream);
}

// e = (norm(W h / √hidden) + √width · E[id]) / √2, with a norm for each layer's columns.
void embed_per_layer(const PerLayerEmbedding& p, const EmbeddingWeights& weights,
                     const Array<std::int32_t>& ids, ConstTensor hidden, Tensor y, Stream& stream) {
  const std::int64_t width = p.norm.width;
  const TensorArray projected(y.dtype, y.rows, y.cols, stream);
  const Linear& projection = weights.per_layer_projection;
  linear(hidden, projection.weight, projection.bias, projected, stream);
  scale(projected, 1.0f / std::sqrt(static_cast<float>(hidden.cols)), stream);
  rms_norm_slices(projected, {y.cols / width, width, width}, weights.per_layer_norm.weight,
                  p.norm.eps, p.norm.offset, stream);
  embed(ids, weights.per_layer_tokens, in_type(y.dtype, std::sqrt(static_cast<float>(width))), y,
        stream);
  add_scaled(projected, 1.0f, y, stream);
  scale(y, std::numbers::sqrt2_v<float> / 2.0f, stream);
}

}  // namespace

void embed_tokens(const Architecture& a, const EmbeddingWeights& weights,
                  const std::vector<std::int32_t>& ids, Activations& activations, Stream& stream) {
  const std::int64_t seqlen = activations.blocking.seqlen;
  const auto work = [&](std::size_t local, Block& block) {
    const std::int64_t tokens = block.hidden.rows;
    Array<std::int32_t> block_ids(1, tokens, stream);
    copy_to_device(block_ids.view.data, ids.data() + activations.first_sample(local) * seqlen,
                   static_cast<std::size_t>(tokens) * sizeof(std::int32_t), stream);
    const Tensor hidden = block.hidden.col_range(0, a.hidden);
    if (a.embedding.projection) {
      const TensorArray narrow(hidden.dtype, tokens, a.embedding.width, stream);
      embed_ids(a.embedding, weights, block_ids, narrow, stream);
      linear(narrow, weights.projection.weight, weights.projection.bias, hidden, stream);
    } else {
      embed_ids(a.embedding, weights, block_ids, hidden, stream);
    }
    if (!a.embedding.positions.empty())
      add_rows(weights.positions, a.embedding.first_position, seqlen, hidden, stream);
    if (a.per_layer) {
      const Tensor columns = block.hidden.col_range(a.hidden + a.per_layer->carried,
                                                    a.per_layer->projection.out_features);
      embed_per_layer(*a.per_layer, weights, block_ids, hidden, columns, stream);
    }
  };
  visit(activations, Access::write, Access::none, work, stream);
}

}  // namespace qpipe
