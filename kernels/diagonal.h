// The diagonal of a square matrix.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// out[0, i] = a[i, i].   a [d, d], out [1, d].
void diagonal(Matrix<const float> a, Matrix<float> out, Stream& stream);

// a = I.   a [d, d].
void set_identity(Matrix<float> a, Stream& stream);

namespace cuda {
decltype(qpipe::diagonal) diagonal;
decltype(qpipe::set_identity) set_identity;
}  // namespace cuda

}  // namespace qpipe
