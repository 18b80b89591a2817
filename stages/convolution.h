// Causal convolutions inside of mixers (stages/architecture.h).
#pragma once

#include "stages/layer.h"

namespace qpipe {

// NAME.weight and NAME.bias, as vectors: they stay float32 for the kernel, and are not quantized.
void add_tensors(const CausalConv& conv, std::vector<TensorSpec>& tensors);

// Of the layer, [channels, kernel].
Matrix<const float> conv_weight(const CausalConv& conv, const Layer& layer);

// y = f(conv(x)), f silu or not (kernels/causal_conv.h).
void convolve(const CausalConv& conv, const Layer& layer, ConstTensor x, bool silu,
              std::int64_t seqlen, Tensor y, Stream& stream);

}  // namespace qpipe
