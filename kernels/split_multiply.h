// c = c0 + a b in float32 on CUDA's tensor cores, with float16 pieces of both factors.
//
// A row of a, and a column of b, is scaled by a power of two that brings its largest entry into
// [2^14, 2^15), and split, x = hi + lo with 22 bits: a b = hi hi + hi lo + lo hi + (below float32's
// roundoff). What is smaller than 2^-40 of its row's or column's largest entry is lost. Every
// element is one sum in ascending k whatever the number of rows: a row's bits do not depend on its
// neighbours.
#pragma once

#include "kernels/stream.h"

namespace qpipe::cuda {

inline constexpr std::int64_t split_depth =
    64;  // pieces have a multiple of as many k, the last of them 0
inline constexpr std::int64_t split_tile = 128;  // rows and columns of a thread block

constexpr std::int64_t round_up_to(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size * size;
}

// The pieces of a [rows, depth] and b [depth, cols], one pair after the other in the same memory.
class SplitMultiply {
 public:
  SplitMultiply(std::int64_t rows, std::int64_t depth, std::int64_t cols, Stream& stream);
  static constexpr std::int64_t workspace_bytes(std::int64_t rows, std::int64_t depth,
                                                std::int64_t cols) {
    return round_up_to(depth, split_depth) * (rows + round_up_to(cols, split_tile)) * 4 +
           4 * (rows + 2 * cols);
  }
  // a [rows, depth], b [depth, cols], c0 and c [rows, cols], of at most the sizes given at first; c
  // may be c0.
  void run(Matrix<const float> c0, Matrix<const float> a, Matrix<const float> b, Matrix<float> c,
           Stream& stream) const;

 private:
  Array<std::uint16_t> left_;   // [2 rows, depth]: hi, then lo
  Array<std::uint16_t> right_;  // [2 depth, cols]
  Array<float> left_scale_;     // [1, rows]: what hi + lo is to be multiplied by
  Array<float> right_scale_;    // [1, cols]
  Array<float> right_largest_;  // [1, cols]
};

}  // namespace qpipe::cuda
