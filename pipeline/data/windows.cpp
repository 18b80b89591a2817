#include "pipeline/data/windows.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace qpipe {

std::uint64_t uniform_below(std::uint64_t bound, std::mt19937_64& generator) {
  const std::uint64_t excess = -bound % bound;  // 2^64 mod bound
  std::uint64_t draw = generator();
  while (draw < excess) draw = generator();
  return draw % bound;
}

std::vector<std::int64_t> random_windows(std::int64_t tokens, std::int64_t seqlen,
                                         std::int64_t windows, std::int64_t seed) {
  std::mt19937_64 generator(static_cast<std::uint64_t>(seed));
  std::vector<std::int64_t> starts(static_cast<std::size_t>(windows));
  for (std::int64_t& start : starts)
    start = static_cast<std::int64_t>(
        uniform_below(static_cast<std::uint64_t>(tokens - seqlen + 1), generator));
  return starts;
}

std::vector<std::int64_t> random_choice(std::int64_t count, std::int64_t chosen,
                                        std::int64_t seed) {
  std::mt19937_64 generator(static_cast<std::uint64_t>(seed));
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (std::int64_t i = 0; i < chosen; ++i)
    std::swap(order[static_cast<std::size_t>(i)],
              order[static_cast<std::size_t>(i) +
                    uniform_below(static_cast<std::uint64_t>(count - i), generator)]);
  order.resize(static_cast<std::size_t>(chosen));
  return order;
}

std::vector<std::int64_t> divide_by_shares(std::int64_t samples,
                                           const std::vector<double>& shares) {
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<std::int64_t> parts;
  std::vector<std::pair<double, std::size_t>>
      fractions;  // negative, so that sorting begins with the largest
  std::int64_t left = samples;
  for (std::size_t i = 0; i < shares.size(); ++i) {
    const double part = static_cast<double>(samples) * shares[i] / sum;
    parts.push_back(std::min(static_cast<std::int64_t>(part), left));
    left -= parts.back();
    fractions.emplace_back(static_cast<double>(parts.back()) - part, i);
  }
  std::sort(fractions.begin(), fractions.end());
  for (std::size_t i = 0; left > 0; ++i, --left) ++parts[fractions[i % fractions.size()].second];
  return parts;
}

}  // namespace qpipe
