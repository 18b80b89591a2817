#include "launch/share.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace qpipe {

RowRange contiguous_share(std::int64_t blocks, int rank, int ranks) {
  if (blocks < 0 || ranks < 1 || rank < 0 || rank >= ranks)
    throw std::invalid_argument("contiguous_share: no such rank or block count");
  const std::int64_t each = blocks / ranks;
  const std::int64_t larger = blocks % ranks;  // ranks that own one block more
  return {rank * each + std::min<std::int64_t>(rank, larger), each + (rank < larger ? 1 : 0)};
}

std::vector<std::vector<RowRange>> share_rows(const std::vector<std::int64_t>& rows,
                                              std::int64_t block, int ranks) {
  if (block < 1 || ranks < 1)
    throw std::invalid_argument("share_rows: a block needs a row, and rows need a rank");
  if (std::any_of(rows.begin(), rows.end(), [](std::int64_t count) { return count < 0; }))
    throw std::invalid_argument("share_rows: a negative number of rows");
  const auto blocks_of = [block](std::int64_t count) { return (count + block - 1) / block; };
  std::int64_t blocks = 0;
  for (const std::int64_t count : rows) blocks += blocks_of(count);

  std::vector<std::vector<RowRange>> shares;
  std::int64_t first = 0;  // of the linear's blocks, among all
  for (const std::int64_t count : rows) {
    std::vector<RowRange>& of_linear = shares.emplace_back();
    for (int rank = 0; rank < ranks; ++rank) {
      const RowRange run = contiguous_share(blocks, rank, ranks);
      const auto to_row = [&](std::int64_t position) {
        return std::min(count,
                        std::clamp<std::int64_t>(position - first, 0, blocks_of(count)) * block);
      };
      const std::int64_t begin = to_row(run.begin);
      of_linear.push_back({begin, to_row(run.begin + run.count) - begin});
    }
    first += blocks_of(count);
  }
  return shares;
}

std::vector<int> share_by_cost(const std::vector<double>& costs, int ranks) {
  if (ranks < 1) throw std::invalid_argument("share_by_cost: no ranks");
  if (std::any_of(costs.begin(), costs.end(),
                  [](double cost) { return !(cost >= 0.0) || !std::isfinite(cost); }))
    throw std::invalid_argument("share_by_cost: a cost is negative or not finite");
  std::vector<std::size_t> order(costs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });
  std::vector<double> load(static_cast<std::size_t>(ranks), 0.0);
  std::vector<int> owners(costs.size());
  for (const std::size_t task : order) {
    const auto least = std::min_element(load.begin(), load.end());  // the first of equals
    *least += costs[task];
    owners[task] = static_cast<int>(least - load.begin());
  }
  return owners;
}

}  // namespace qpipe
