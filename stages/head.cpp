#include "stages/head.h"

#include "kernels/activation.h"
#include "kernels/limit.h"
#include "kernels/linear.h"

namespace qpipe {

void head_input(const Architecture& a, const HeadWeights& weights, ConstTensor hidden,
                Tensor scratch, Tensor y, Stream& stream) {
  const Tensor normed =
      a.head.projection ? Tensor(scratch.data, scratch.dtype, hidden.rows, a.hidden) : y;
  if (a.head.norm)
    apply_norm(*a.head.norm, weights.norm, hidden, normed, stream);
  else
    convert(hidden, normed, stream);
  if (a.head.projection)
    linear(normed, weights.projection.weight, weights.projection.bias, y, stream);
}

void head_logits(const Head& head, const HeadWeights& weights, ConstTensor x, Matrix<float> logits,
                 Stream& stream) {
  linear(x, weights.head, weights.bias, logits, stream);
  if (head.multiplier != 1.0f) scale(logits, head.multiplier, stream);
  if (head.soft_cap > 0.0f) soft_cap(logits, head.soft_cap, stream);
}

}  // namespace qpipe
