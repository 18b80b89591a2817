// LLM.int8 of bitsandbytes: rows of signed bytes and their maxima. Source: formats.md §3 and
// bitsandbytes 0.50.2, whose CPU bytes both backends give (its CUDA build multiplies by an
// approximate 127/SCB).
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// v = w rounded to float16; scb[n] = max_k |v|; code = rne(v · (127 · (1 / scb))), every operation
// rounded to float32. Code 0 for the whole row where scb is 0, infinite (some |w| ≥ 65520) or NaN:
// callers check scb. w [N, K] f32, f16 or bf16; scb [1, N]; code [N, K].
void quantize_int8_rows(ConstTensor w, Matrix<float> scb, Matrix<std::int8_t> code, Stream& stream);

// w = (code · scb[n]) · fl(1/127) in float32, rounded once to w's type (f32, f16 or bf16).
void dequantize_int8_rows(Matrix<const std::int8_t> code, Matrix<const float> scb, Tensor w,
                          Stream& stream);

namespace cuda {
decltype(qpipe::quantize_int8_rows) quantize_int8_rows;
decltype(qpipe::dequantize_int8_rows) dequantize_int8_rows;
}  // namespace cuda

}  // namespace qpipe
