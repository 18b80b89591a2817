// Normalisations over the last dimension, computed in float32. x and y may be the same matrix.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// y = x / sqrt(mean(x²) + eps) · (offset + weight).   x, y [tokens, d], weight [1, d]; offset 1 for
// Gemma, else 0.
void rms_norm(ConstTensor x, ConstTensor weight, float eps, float offset, Tensor y, Stream& stream);

// y = (x − mean) / sqrt(var + eps) · weight + bias.   bias [1, d] or empty; var is the biased
// variance.
void layer_norm(ConstTensor x, ConstTensor weight, ConstTensor bias, float eps, Tensor y,
                Stream& stream);

// rms_norm of each of `heads` slices x[:, h·head_dim ... (h+1)·head_dim), in place (Qwen3's q_norm
// and k_norm). x is [tokens, heads·head_dim], usually a column range of the fused qkv matrix;
// weight [1, head_dim].
void rms_norm_heads(Tensor x, std::int64_t heads, ConstTensor weight, float eps, float offset,
                    Stream& stream);

namespace cuda {
decltype(qpipe::rms_norm) rms_norm;
decltype(qpipe::layer_norm) layer_norm;
decltype(qpipe::rms_norm_heads) rms_norm_heads;
}  // namespace cuda

}  // namespace qpipe
