#include "pipeline/options/sizes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "pipeline/files/error.h"

namespace qpipe {

std::optional<std::int64_t> size_of(const std::string& text) {
  struct Unit {
    const char* name;
    double bytes;
  };
  constexpr std::array<Unit, 10> units{{{"", 1},
                                        {"B", 1},
                                        {"KB", 1e3},
                                        {"MB", 1e6},
                                        {"GB", 1e9},
                                        {"TB", 1e12},
                                        {"KiB", 0x1p10},
                                        {"MiB", 0x1p20},
                                        {"GiB", 0x1p30},
                                        {"TiB", 0x1p40}}};
  const std::size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  const std::size_t unit_begin = digits < text.size() && text[digits] == ' ' ? digits + 1 : digits;
  for (const Unit& unit : units) {
    if (digits == 0 || text.substr(unit_begin) != unit.name) continue;
    char* end = nullptr;
    const double bytes = std::strtod(text.c_str(), &end) * unit.bytes;
    if (end != text.c_str() + digits || !(bytes >= 1.0) || bytes >= 0x1p53) break;
    return static_cast<std::int64_t>(bytes);
  }
  return std::nullopt;
}

std::int64_t parse_size(const std::string& text) {
  if (const std::optional<std::int64_t> size = size_of(text)) return *size;
  throw UserError(ExitCode::config,
                  "\"" + text + "\" is no size; write it like \"500MB\" or \"5GB\"");
}

std::string size_text(std::int64_t bytes) {
  const auto size = static_cast<double>(bytes);
  return bytes < std::int64_t{1} << 27 ? fmt::format("{:.1f} MiB", size / 0x1p20)
                                       : fmt::format("{:.2f} GiB", size / 0x1p30);
}

}  // namespace qpipe
