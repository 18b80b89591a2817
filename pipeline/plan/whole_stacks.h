// Experts that share a tensor of the source (pipeline/model/fused_experts.h) and none of whose
// linears is quantized: the output keeps the tensor as it is, which loaders of the family want.
#pragma once

#include "pipeline/plan/plan.h"

namespace qpipe {

// Puts such tensors in the place of their linears among plan.kept, plan.passed and plan.tensors.
// AWQ may change the linears that it doesn't quantize: under it those of the decoder stay apart.
// Throws UserError(ExitCode::config) where a linear that stays apart lies [in, out], as no loader
// takes it.
void keep_whole_stacks(const Checkpoint& checkpoint, QuantizePlan& plan);

}  // namespace qpipe
