#include "pipeline/output/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "pipeline/files/printable.h"
#include "pipeline/files/terminal.h"

namespace qpipe {

namespace {
std::string duration(double seconds) {
  const auto s = static_cast<std::int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}
}  // namespace

Progress::Progress(const std::string& mode, bool active, std::int64_t total)
    : bar_(mode == "bar" || (mode == "auto" && isatty(STDERR_FILENO) != 0)),
      active_(active && mode != "none"),
      total_(std::max<std::int64_t>(total, 1)) {}

Progress::~Progress() {
  if (drawn_) tell("\n");
}

void Progress::update(std::int64_t done, const std::string& what) {
  if (!active_) return;
  const double elapsed = clock_.seconds();
  const double left =
      done > 0 ? elapsed / static_cast<double>(done) * static_cast<double>(total_ - done) : 0.0;
  const std::string text =
      fmt::format("{}  {} elapsed, {} left", what, duration(elapsed), duration(left));
  if (bar_) {
    constexpr std::int64_t width = 30;
    const auto filled = static_cast<std::size_t>(width * done / total_);
    tell(fmt::format("\r[{}{}] {:3}%  {}\033[K", std::string(filled, '#'),
                     std::string(width - filled, '.'), 100 * done / total_, text));
    drawn_ = true;
  } else {
    tell(fmt::format("[{}/{}] {}\n", done, total_, text));
  }
}

void Progress::say(const std::string& line) {
  if (!active_) return;
  if (drawn_) tell("\r\033[K");
  drawn_ = false;
  tell(printable(line) + "\n");
}

}  // namespace qpipe
