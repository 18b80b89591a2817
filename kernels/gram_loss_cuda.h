// Included by .cu files only.
#pragma once

#include "kernels/gram_loss.h"

namespace qpipe::cuda {

// loss[i] = Σ_r δ_r H δ_rᵀ over the rows of run i.   delta [runs · n, d] bfloat16, contiguous;
// loss: `runs` elements on the device.
void gram_losses(ConstTensor delta, std::int64_t runs, const GramMatrix& h, double* loss,
                 Stream& stream);

}  // namespace qpipe::cuda
