// Bounds of what can be asked for: far beyond any use, and small enough that products of them
// (bytes of all tokens' activations, milliseconds of a wait) stay in 64 bits.
#pragma once

#include <cstdint>

namespace qpipe {

inline constexpr std::int64_t most_samples = std::int64_t{1} << 24;
inline constexpr std::int64_t most_seqlen = std::int64_t{1} << 24;
inline constexpr std::int64_t most_tokens = std::int64_t{1} << 36;  // samples · seqlen
inline constexpr std::int64_t most_group_size = std::int64_t{1} << 20;
inline constexpr std::int64_t most_rows = std::int64_t{1} << 31;
inline constexpr std::int64_t most_ratios = 10'000;
inline constexpr std::int64_t most_ranks = std::int64_t{1} << 20;
inline constexpr std::int64_t most_threads = std::int64_t{1} << 16;
inline constexpr std::int64_t most_seconds = 366 * 24 * 60 * 60;
inline constexpr std::int64_t most_mse_exponent = 100;

}  // namespace qpipe
