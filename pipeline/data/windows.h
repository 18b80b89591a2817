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

}  // namespace qpipe
