// Normalisations over the last dimension, computed in float32. x and y may be the same matrix. An
// empty weight scales nothing, whatever the offset (OLMo, the values of Gemma 4).
#pragma once

#include "kernels/head_slices.h"
#include "kernels/stream.h"

namespace qpipe {

// y = x / sqrt(mean(x²) + eps) · (offset + weight).   x, y [tokens, d], weight [1, d] or empty;
// offset 1 for Gemma, else 0.
void rms_norm(ConstTensor x, ConstTensor weight, float eps, float offset, Tensor y, Stream& stream);

// y = (x − mean) / sqrt(var + eps) · (offset + weight) + bias.   weight, bias [1, d] or empty; var
// is the biased variance; offset 1 for Nemotron, else 0.
void layer_norm(ConstTensor x, ConstTensor weight, ConstTensor bias, float eps, float offset,
                Tensor y, Stream& stream);

// rms_norm of each of `heads` slices x[:, h·head_dim ... (h+1)·head_dim), in place (Qwen3's q_norm
// and k_norm). x is [tokens, heads·head_dim], usually a column range of the fused qkv matrix;
// weight [1, head_dim].
void rms_norm_heads(Tensor x, std::int64_t heads, ConstTensor weight, float eps, float offset,
                    Stream& stream);

// rms_norm and layer_norm of each slice, in place. x [tokens, ≥ slices.width()], usually a column
// range of the fused qkv matrix; columns between the slices keep their values. weight and bias:
// [1, head_dim] for all heads, [heads, head_dim] with a row for each (Cohere, StableLM-2), or
// empty.
void rms_norm_slices(Tensor x, HeadSlices slices, ConstTensor weight, float eps, float offset,
                     Stream& stream);
void layer_norm_slices(Tensor x, HeadSlices slices, ConstTensor weight, ConstTensor bias, float eps,
                       float offset, Stream& stream);

namespace cuda {
decltype(qpipe::rms_norm) rms_norm;
decltype(qpipe::layer_norm) layer_norm;
decltype(qpipe::rms_norm_slices) rms_norm_slices;
decltype(qpipe::layer_norm_slices) layer_norm_slices;
}  // namespace cuda

}  // namespace qpipe
