// The residual stream behind the last layer → logits.
#pragma once

#include "stages/layer.h"

namespace qpipe {

// The tensors of head_tensors(), on the device in the compute type.
struct HeadWeights {
  Norm norm;
  Linear projection;
  TensorArray head;  // [vocab, width]; the embedding's table where tied
  TensorArray bias;
  std::vector<Buffer> memory;
};

// y [tokens, width]: what the head's rows are multiplied with, made of the stream's columns.
// scratch: compute type, at least [tokens, hidden]; y may not lie there.
void head_input(const Architecture& architecture, const HeadWeights& weights, ConstTensor hidden,
                Tensor scratch, Tensor y, Stream& stream);

// logits [tokens, vocab] float32 for rows of head_input's output.
void head_logits(const Head& head, const HeadWeights& weights, ConstTensor x, Matrix<float> logits,
                 Stream& stream);

}  // namespace qpipe
