// Where the samples of a text begin. Pure, and the same on every platform.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace qpipe {

// Uniform in [0, bound), bound > 0, without bias: draws of the incomplete last interval are thrown
// away.
std::uint64_t uniform_below(std::uint64_t bound, std::mt19937_64& generator);

// `windows` independent starts in [0, tokens - seqlen], as GPTQ's authors draw them: windows may
// overlap.
std::vector<std::int64_t> random_windows(std::int64_t tokens, std::int64_t seqlen,
                                         std::int64_t windows, std::int64_t seed);

// `chosen` different ones of 0 .. count-1 in random order (Fisher and Yates).
std::vector<std::int64_t> random_choice(std::int64_t count, std::int64_t chosen, std::int64_t seed);

// samples · share / Σ shares of each, rounded so that they sum to `samples`: the largest fractions
// are rounded up. shares > 0.
std::vector<std::int64_t> divide_by_shares(std::int64_t samples, const std::vector<double>& shares);

}  // namespace qpipe
