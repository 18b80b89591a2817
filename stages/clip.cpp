#include "stages/clip.h"

#include <algorithm>
#include <array>

#include "kernels/clip_search.h"
#include "launch/share.h"

namespace qpipe {

namespace {

constexpr std::int64_t row_block = 32;

}

bool may_clip(const std::string& module) {
  constexpr std::array<const char*, 5> kept = {"q_", "k_", "query", "key", "Wqkv"};
  const std::string name = module.substr(module.rfind('.') + 1);
  return std::none_of(kept.begin(), kept.end(), [&](const char* part) { return name.find(part) != std::string::npos; });
}

void clip_weight(Matrix<float> w, const Hessian& hessian, const LinearSettings& settings, Comm& comm, Stream& stream) {
  const Array<float> limit(w.rows, settings.groups(w.cols), stream);
  const std::vector<RowRange> share = share_rows({w.rows}, row_block, comm.size()).front();
  const RowRange mine = share[static_cast<std::size_t>(comm.rank())];
  if (mine.count > 0)
    search_clip(w.row_range(mine.begin, mine.count), hessian.matrix, settings.group_columns(w.cols),
                {settings.bits, settings.symmetric, 0.0f}, limit.view.row_range(mine.begin, mine.count), stream);
  comm.all_gather_rows(limit.view.data, static_cast<std::size_t>(limit.view.cols) * sizeof(float), share, stream);
  clamp_groups(w, limit, stream);
}

}  // namespace qpipe
