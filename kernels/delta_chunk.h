// What the chunked form of the delta rule keeps of each chunk of a head between its two kernels
// (kernels/delta_rule.cu), in elements of two bytes: three matrices [64, key_dim], three [64, 64]
// and a decay for each channel in float32. Keys are padded with zeros to a width that a kernel was
// made for.
#pragma once

#include <cstdint>

namespace qpipe {

inline constexpr std::int64_t delta_chunk = 64;  // tokens

constexpr std::int64_t padded_key_dim(std::int64_t key_dim) {
  return key_dim <= 64 ? 64 : key_dim <= 128 ? 128 : 256;
}

constexpr std::int64_t delta_chunk_elements(std::int64_t padded_dim) {
  return 3 * delta_chunk * padded_dim + 3 * delta_chunk * delta_chunk + 2 * padded_dim;
}

}  // namespace qpipe
