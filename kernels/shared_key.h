// The heads of latent attention side by side, as kernels/attention.h reads them.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

// Columns of `out` for head h, of nope + r + V: the nope columns of the head's key, the shared
// key's r, the V columns of its value.   kv [tokens, heads · (nope + V)], each head's key columns
// in front of its value's; key [tokens, r], out [tokens, heads · (nope + r + V)]; all of the
// compute type, out apart from the others. nope, r and V may be 0.
void insert_shared_key(ConstTensor kv, ConstTensor key, std::int64_t heads, std::int64_t nope,
                       Tensor out, Stream& stream);

namespace cuda {
decltype(qpipe::insert_shared_key) insert_shared_key;
}  // namespace cuda

}  // namespace qpipe
