#include "stages/clip.h"

#include <algorithm>
#include <array>

#include "kernels/clip_search.h"

namespace qpipe {

bool may_clip(const std::string& module) {
  constexpr std::array<const char*, 5> kept = {"q_", "k_", "query", "key", "Wqkv"};
  const std::string name = module.substr(module.rfind('.') + 1);
  return std::none_of(kept.begin(), kept.end(),
                      [&](const char* part) { return name.find(part) != std::string::npos; });
}

void clip_weight(Matrix<float> w, const Hessian& hessian, const LinearSettings& settings,
                 Stream& stream) {
  Array<float> limit(w.rows, settings.groups(w.cols), stream);
  search_clip(w, hessian.matrix, settings.group_columns(w.cols),
              {settings.bits, settings.symmetric, 0.0f}, limit, stream);
  clamp_groups(w, limit, stream);
}

}  // namespace qpipe
