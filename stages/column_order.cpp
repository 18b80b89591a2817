#include "stages/column_order.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace qpipe {

std::vector<std::int32_t> act_order(const std::vector<float>& diagonal) {
  std::vector<std::int32_t> perm(diagonal.size());
  std::iota(perm.begin(), perm.end(), 0);
  std::stable_sort(perm.begin(), perm.end(),
                   [&](std::int32_t a, std::int32_t b) { return diagonal[a] > diagonal[b]; });
  return perm;
}

std::vector<std::int32_t> group_aware_order(const std::vector<float>& diagonal,
                                            std::int64_t group_size) {
  const auto columns = static_cast<std::int64_t>(diagonal.size());
  if (group_size <= 0 || columns % group_size != 0)
    throw std::invalid_argument("group_aware_order: group_size must divide the columns");
  std::vector<float> weight;
  for (std::int64_t begin = 0; begin < columns; begin += group_size)
    weight.push_back(
        *std::max_element(diagonal.begin() + begin, diagonal.begin() + begin + group_size));
  std::vector<std::int32_t> perm;
  perm.reserve(diagonal.size());
  for (const std::int32_t group : act_order(weight)) {
    const auto begin = diagonal.begin() + group * group_size;
    for (const std::int32_t column : act_order(std::vector<float>(begin, begin + group_size)))
      perm.push_back(static_cast<std::int32_t>(group * group_size) + column);
  }
  return perm;
}

}  // namespace qpipe
