#include "pipeline/model/mamba_readers.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace qpipe {

namespace {

using Json = nlohmann::json;

constexpr std::int64_t widest_state = 256;  // of kernels/state_space.h
constexpr std::int64_t longest_kernel = 256;

std::int64_t size_or(const ConfigJson& config, const std::vector<std::string>& names,
                     std::int64_t absent) {
  return find_size(config, names).value_or(absent);
}

bool is_auto(const ConfigJson& config, const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    const Json* value = find_value(config, name);
    return value != nullptr && *value == "auto";
  });
}

// A number, or Infinity: ["Infinity"] is what Python's literal is read as.
bool read_limit(const Json& value, float& limit) {
  if (value == Json::array({"Infinity"}) || value == Json{{"__float__", "Infinity"}}) {
    limit = std::numeric_limits<float>::infinity();
    return true;
  }
  if (!value.is_number()) return false;
  limit = value.get<float>();
  return std::isfinite(limit);
}

}  // namespace

Mamba2 read_mamba2_mixer(const ConfigJson& config, const Sizes& s, const std::string& module,
                         const Mamba2Keys& keys, std::int64_t inner) {
  Mamba2 m;
  if (inner == 0) {
    const std::int64_t expand = size_or(config, keys.expand, 2);
    if (expand * s.hidden > largest_width)
      refuse(config, keys.expand.front(), "makes the state space too wide");
    inner = expand * s.hidden;
  }
  StateSpaceLayout& l = m.layout;
  l.heads = size_or(config, keys.heads, 128);
  if (inner % l.heads != 0)
    refuse(config, keys.heads.front(), fmt::format("must divide the {} columns of x", inner));
  const std::int64_t fitting = inner / l.heads;
  l.head_dim = is_auto(config, keys.head_dim)
                   ? fitting
                   : size_or(config, keys.head_dim,
                             keys.absent_head_dim > 0 ? keys.absent_head_dim : fitting);
  if (l.head_dim != fitting)
    refuse(config, keys.head_dim.front(),
           fmt::format("must be {}: {} heads make the {} columns of x", fitting, l.heads, inner));
  l.groups = size_or(config, keys.groups, keys.absent_groups);
  if (l.heads % l.groups != 0)
    refuse(config, keys.groups.front(), fmt::format("must divide the {} heads", l.heads));
  l.state = size_or(config, keys.state, keys.absent_state);
  if (l.state > widest_state)
    refuse(config, keys.state.front(), fmt::format("must be at most {} here", widest_state),
           ExitCode::unavailable);
  const std::int64_t kernel = size_or(config, keys.kernel, 4);
  if (kernel > longest_kernel)
    refuse(config, keys.kernel.front(), fmt::format("must be at most {}", longest_kernel));
  read_one_of(config, keys.activation, {"silu"});
  const std::int64_t projected = inner + l.width() + l.heads;
  if (static_cast<double>(s.layers) * static_cast<double>(s.hidden) *
          static_cast<double>(projected + inner) >
      most_parameters)
    refuse(config, keys.heads.front(),
           "and the other sizes make more than 10^15 parameters: no model has so many");
  m.in = {module + ".in_proj", projected, s.hidden, read_flag(config, keys.in_bias, false)};
  m.out = {module + ".out_proj", s.hidden, inner, read_flag(config, keys.out_bias, false)};
  m.conv = {module + ".conv1d", l.width(), kernel, read_flag(config, keys.conv_bias, true)};
  m.a_log = module + ".A_log";
  m.dt_bias = module + ".dt_bias";
  m.d = module + ".D";
  m.norm = rms_norm_of(config, module + ".norm", inner, keys.eps, keys.absent_eps);
  m.norm_groups = l.groups;
  return m;
}

void read_time_step_limit(const ConfigJson& config, Mamba2& m) {
  const std::string key = "time_step_limit";
  const Json* limits = find_value(config, key);
  if (limits == nullptr) return;
  if (!limits->is_array() || limits->size() != 2 || !read_limit((*limits)[0], m.shortest_step) ||
      !read_limit((*limits)[1], m.longest_step) || m.shortest_step < 0.0f ||
      !(m.shortest_step <= m.longest_step))
    refuse(config, key, "must be [shortest, longest], numbers from 0 on");
}

std::string read_layer_letters(const ConfigJson& config, std::int64_t layers,
                               const std::vector<LayerLetter>& known,
                               const std::string& letters_key, const std::string& names_key) {
  std::vector<std::string> names;
  std::string letters_known;
  for (const LayerLetter& one : known) {
    names.insert(names.end(), one.names.begin(), one.names.end());
    letters_known += one.letter;
  }
  std::string by_name;
  for (const std::string& name : read_layer_types(config, layers, names, names_key))
    for (const LayerLetter& one : known)
      if (std::find(one.names.begin(), one.names.end(), name) != one.names.end())
        by_name += one.letter;
  if (!has_key(config, letters_key)) {
    if (by_name.empty()) refuse(config, letters_key, "must say the kinds of layers");
    return by_name;
  }
  const std::string letters = read_text(config, letters_key);
  if (const std::size_t at = letters.find_first_not_of(letters_known); at != std::string::npos)
    refuse(config, letters_key,
           fmt::format("must hold only the letters {}; layer {} has another", letters_known, at),
           ExitCode::unavailable);
  if (std::ssize(letters) != layers)
    refuse(config, letters_key, fmt::format("must have one letter for each of {} layers", layers));
  if (!by_name.empty() && by_name != letters)
    refuse(config, letters_key, fmt::format("must say what {} does", names_key));
  return letters;
}

}  // namespace qpipe
