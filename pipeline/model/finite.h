// Whether what a checkpoint holds are numbers: a NaN or an infinity in a weight is damage, which is
// told with the tensor's name before anything is computed with it.
#pragma once

#include <cstdint>
#include <optional>

#include "pipeline/model/checkpoint.h"
#include "pipeline/model/read_back.h"

namespace qpipe {

// The first element of `bytes` bytes at `data` that is NaN or infinite. None for types without
// such values.
std::optional<std::int64_t> first_not_finite(DType dtype, const void* data, std::int64_t bytes);

// What a tensor's bytes are as numbers: its dtype, but for codes under a float's name
// (bitsandbytes) and powers of two under an integer's (MXFP4).
DType number_type(StoredFormat format, const Checkpoint& checkpoint, const TensorInfo& tensor);

// Bytes of a tensor from its byte `begin` on, which begins an element. Throws UserError(data) that
// names file, tensor and element.
void check_finite(const Checkpoint& checkpoint, const TensorInfo& tensor, DType as,
                  std::int64_t begin, const void* data, std::int64_t bytes);

// The largest magnitude of an element of a float tensor, which is read piece by piece; 0 of others.
// Throws as check_finite.
float largest_magnitude(const Checkpoint& checkpoint, const TensorInfo& tensor);

}  // namespace qpipe
