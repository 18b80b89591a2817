// How much of what a file packs is believed.
#pragma once

#include <algorithm>
#include <cstdint>

namespace qpipe {

// Files of a few megabytes can unpack to terabytes. Text packs 3 to 10 times and token ids less; a
// file that unpacks to more than 64 times its bytes is refused once that is more than calibration
// has any use for: 1 GiB of text is some 250 million tokens.
constexpr std::int64_t most_unpacked_bytes(std::int64_t packed_bytes) {
  constexpr std::int64_t always = std::int64_t{1} << 30;
  constexpr std::int64_t ratio = 64;
  return std::max(always,
                  packed_bytes > (std::int64_t{1} << 50) ? packed_bytes : ratio * packed_bytes);
}

}  // namespace qpipe
