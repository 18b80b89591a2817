#include "pipeline/files/suggest.h"

#include <algorithm>

namespace qpipe {

namespace {

// Comparing takes the product of both lengths; what is longer is nothing that anybody mistyped.
constexpr std::size_t longest_compared = 500;

}  // namespace

std::size_t edit_distance(const std::string& a, const std::string& b) {
  // Rows of the table d(i, j) for the prefixes a[0, i) and b[0, j): two back, one back, current.
  std::vector<std::size_t> before(b.size() + 1), previous(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before.swap(previous);
    previous.swap(row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min(
          {previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(1, name.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    // No edit changes a length by more than one.
    const std::size_t shorter = std::min(candidate.size(), name.size());
    if (std::max(candidate.size(), name.size()) - shorter >= best_distance) continue;
    if (shorter > longest_compared) continue;
    const std::size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  if (!best.empty() || name.size() < 3) return best;
  for (const std::string& candidate : candidates)
    if (candidate.starts_with(name) || name.starts_with(candidate)) return candidate;
  return {};
}

}  // namespace qpipe
