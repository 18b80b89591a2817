#include "pipeline/schedule.h"

#include <algorithm>

namespace qpipe {

Travel Schedule::travel() const {
  if (!calibrates || teams.teams == 1) return Travel::stay;
  return quantized_propagation ? Travel::hand_over : Travel::stream;
}

std::int64_t Schedule::end() const {
  const auto last = std::find(finished.rbegin(), finished.rend(), false);
  return finished.rend() - last;
}

std::vector<Round> Schedule::rounds() const {
  const std::int64_t size = travel() == Travel::hand_over ? 1 : teams.teams;
  std::vector<Round> result;
  for (std::int64_t first = 0; first < layers(); first += size)
    result.push_back({first, std::min(size, layers() - first)});
  return result;
}

Task Schedule::task(const Round& round) const {
  Task task;
  for (std::int64_t layer = round.first; layer < round.first + round.count; ++layer) {
    if (!works_on(layer)) continue;
    task.layer = layer;
    task.output_needed = calibrates && layer + 1 < end();
    task.duty = !is_finished(layer)  ? Duty::quantize
                : task.output_needed ? Duty::pass_on
                                     : Duty::none;
  }
  return task;
}

}  // namespace qpipe
