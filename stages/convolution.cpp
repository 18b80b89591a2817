#include "stages/convolution.h"

#include "kernels/causal_conv.h"

namespace qpipe {

void add_tensors(const CausalConv& conv, std::vector<TensorSpec>& tensors) {
  tensors.push_back({conv.name + ".weight", {conv.channels, 1, conv.kernel}, TensorRole::vector});
  if (conv.bias) tensors.push_back({conv.name + ".bias", {conv.channels}, TensorRole::vector});
}

Matrix<const float> conv_weight(const CausalConv& conv, const Layer& layer) {
  return {layer.vectors.at(conv.name + ".weight").data, conv.channels, conv.kernel};
}

void convolve(const CausalConv& conv, const Layer& layer, ConstTensor x, bool silu,
              std::int64_t seqlen, Tensor y, Stream& stream) {
  causal_conv(x, conv_weight(conv, layer),
              conv.bias ? layer.vectors.at(conv.name + ".bias") : Matrix<const float>{}, silu,
              seqlen, y, stream);
}

}  // namespace qpipe
