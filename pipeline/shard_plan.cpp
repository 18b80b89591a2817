#include "pipeline/shard_plan.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstdlib>

#include "pipeline/error.h"

namespace qpipe {

std::int64_t parse_size(const std::string& text) {
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
    if (end != text.c_str() + digits || !(bytes >= 1.0) || bytes >= 0x1p62) break;
    return static_cast<std::int64_t>(bytes);
  }
  throw UserError(ExitCode::config, "\"" + text + "\" is no size; write it like \"500MB\" or \"5GB\"");
}

std::vector<std::vector<std::size_t>> plan_shards(const std::vector<TensorInfo>& tensors, std::int64_t max_bytes) {
  std::vector<std::vector<std::size_t>> shards(1);
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!shards.back().empty() && bytes + tensors[i].bytes() > max_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(i);
    bytes += tensors[i].bytes();
  }
  return shards;
}

std::string shard_name(std::size_t shard, std::size_t shards) {
  return shards == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
}

nlohmann::json make_index(const std::vector<TensorInfo>& tensors, const std::vector<std::vector<std::size_t>>& plan) {
  nlohmann::json map = nlohmann::json::object();
  std::int64_t total = 0;
  for (std::size_t shard = 0; shard < plan.size(); ++shard)
    for (const std::size_t i : plan[shard]) {
      map[tensors[i].name] = shard_name(shard, plan.size());
      total += tensors[i].bytes();
    }
  return {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
}

}  // namespace qpipe
