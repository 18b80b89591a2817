#include "pipeline/data/windows.h"

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

}  // namespace qpipe
