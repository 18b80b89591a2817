// Quantized checkpoints as sources: each packed linear, of the decoder or beside it, is presented
// as the weight that it stands for. Nothing after this need know of the packing; a range of the
// weight is dequantized when it is read, on the CPU.
#pragma once

#include "pipeline/model/checkpoint.h"

namespace qpipe {

// Formats whose weights can be quantized anew: FP8, MXFP4, and compressed-tensors' ones. The
// weights get the type that config.json names beside them (bfloat16 where it names none of two
// bytes), and config.json loses its quantization_config. Throws UserError: data for another format,
// or naming the first linear whose tensors are not as the format says, or whose scales are not
// finite.
void present_dequantized(Checkpoint& checkpoint);

}  // namespace qpipe
