#include "pipeline/model/rope_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace qpipe {

namespace {

using Json = nlohmann::json;
constexpr std::int64_t longest_context = std::int64_t{1} << 40;

// The object with the kind's parameters; an empty one when config.json has none. rope_scaling
// counts unless it is empty, as in transformers.
ConfigJson scaling_object(const ConfigJson& config) {
  static const Json none = Json::object();
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* value = find_value(config, key);
    if (value == nullptr) continue;
    if (!value->is_object()) refuse(config, key, "must be an object or null");
    if (!value->empty()) return {*value, config.where + ": " + key};
  }
  return {none, config.where};
}

struct Context {
  const ConfigJson& config;
  const ConfigJson& scaling;
  std::int64_t max_positions;
  double theta;
};

std::int64_t original_positions(const Context& c) {
  const std::string key = "original_max_position_embeddings";
  if (c.config.object.contains(key)) return read_integer(c.config, key, 1, longest_context);
  return c.scaling.object.contains(key) ? read_integer(c.scaling, key, 1, longest_context)
                                        : c.max_positions;
}

void scale_linear(const Context& c, Rope& rope) {
  const auto factor = static_cast<float>(read_positive(c.scaling, "factor"));
  for (float& f : rope.inverse_frequencies) f /= factor;
}

void scale_llama3(const Context& c, Rope& rope) {
  const auto factor = static_cast<float>(read_positive(c.scaling, "factor"));
  const double low = read_positive(c.scaling, "low_freq_factor");
  const double high = read_positive(c.scaling, "high_freq_factor");
  if (high <= low) refuse(c.scaling, "high_freq_factor", "must be above low_freq_factor");
  const auto original = static_cast<double>(original_positions(c));
  const auto longest_wave = static_cast<float>(original / low);
  const auto shortest_wave = static_cast<float>(original / high);
  for (float& f : rope.inverse_frequencies) {
    const float wave = static_cast<float>(2.0 * std::numbers::pi) / f;
    if (wave > longest_wave) {
      f /= factor;
    } else if (wave >= shortest_wave) {
      const float smooth = (static_cast<float>(original) / wave - static_cast<float>(low)) /
                           static_cast<float>(high - low);
      f = (1.0f - smooth) * f / factor + smooth * f;
    }
  }
}

void scale_yarn(const Context& c, std::int64_t rotated, Rope& rope) {
  const auto original = static_cast<double>(original_positions(c));
  const double factor = is_null(c.scaling, "factor")
                            ? static_cast<double>(c.max_positions) / original
                            : read_positive(c.scaling, "factor");
  // Zero and null mean absent, as in the reference.
  const auto or_else = [&](const char* key, double otherwise) {
    const Json* value = find_value(c.scaling, key);
    return value == nullptr || (value->is_number() && value->get<double>() == 0.0)
               ? otherwise
               : read_positive(c.scaling, key);
  };
  const auto magnitude = [&](double mscale) {
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
  };
  const double mscale = or_else("mscale", 0.0);
  const double mscale_all = or_else("mscale_all_dim", 0.0);
  const double derived =
      mscale > 0.0 && mscale_all > 0.0 ? magnitude(mscale) / magnitude(mscale_all) : magnitude(1.0);
  rope.amplitude = static_cast<float>(find_value(c.scaling, "attention_factor") == nullptr
                                          ? derived
                                          : read_positive(c.scaling, "attention_factor"));

  if (c.theta <= 1.0) refuse(c.scaling, "rope_theta", "must be above 1 for yarn");
  const auto width = static_cast<double>(rotated);
  // The dimension whose angle makes `turns` turns over the original context.
  const auto dimension = [&](double turns) {
    return width * std::log(original / (turns * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(c.theta));
  };
  double low = dimension(or_else("beta_fast", 32.0));
  double high = dimension(or_else("beta_slow", 1.0));
  if (read_flag(c.scaling, "truncate", true)) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, width - 1.0);
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < rope.inverse_frequencies.size(); ++i) {
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;
    const float exact = rope.inverse_frequencies[i];
    const float position = std::pow(static_cast<float>(c.theta),
                                    static_cast<float>(2 * i) / static_cast<float>(rotated));
    rope.inverse_frequencies[i] =
        1.0f / (static_cast<float>(factor) * position) * (1.0f - keep) + exact * keep;
  }
}

}  // namespace

Rope read_rope(const ConfigJson& config, const RopeRule& rule) {
  const ConfigJson scaling = scaling_object(config);
  for (const char* nested : {"full_attention", "sliding_attention"})
    if (scaling.object.contains(nested))
      refuse(scaling, nested,
             "cannot be computed here: one set of rotary positions serves every layer",
             ExitCode::unavailable);

  const auto stated_in = [&](const std::string& key) -> const ConfigJson& {
    return scaling.object.contains(key) ? scaling : config;
  };
  const double theta = read_positive(stated_in("rope_theta"), "rope_theta", 10000.0);
  double fraction = 1.0;
  const std::string fraction_key = "partial_rotary_factor";
  const ConfigJson& fraction_from = stated_in(fraction_key);
  if (find_value(fraction_from, fraction_key) != nullptr) {
    fraction = read_positive(fraction_from, fraction_key);
    if (fraction > 1.0) refuse(fraction_from, fraction_key, "must be at most 1");
    if (fraction != 1.0 && !rule.partial)
      refuse(fraction_from, fraction_key, "must be 1: this family rotates whole heads",
             ExitCode::unavailable);
  }
  const auto rotated = static_cast<std::int64_t>(static_cast<double>(rule.head_dim) * fraction);
  if (rotated < 2 || rotated % 2 != 0)
    throw UserError(ExitCode::data,
                    config.where + ": rotary positions turn pairs of columns, but " +
                        std::to_string(rotated) + " columns of each head (head_dim " +
                        std::to_string(rule.head_dim) +
                        ") are to be rotated: an even number from 2 is needed");

  Rope rope;
  rope.enabled = true;
  rope.interleaved = rule.interleaved;
  for (std::int64_t i = 0; i < rotated; i += 2)
    rope.inverse_frequencies.push_back(
        1.0f /
        std::pow(static_cast<float>(theta), static_cast<float>(i) / static_cast<float>(rotated)));

  const std::string kind_key =
      scaling.object.contains("rope_type") || !scaling.object.contains("type") ? "rope_type"
                                                                               : "type";
  const std::string kind = read_text(scaling, kind_key, "default");
  const Context context{config, scaling, rule.max_positions, theta};
  if (kind == "linear") {
    scale_linear(context, rope);
  } else if (kind == "dynamic") {
    read_positive(scaling, "factor");
    rope.longest = rule.max_positions;
  } else if (kind == "llama3") {
    scale_llama3(context, rope);
  } else if (kind == "yarn") {
    scale_yarn(context, rotated, rope);
  } else if (kind != "default") {
    refuse(scaling, kind_key, "must be one of default, dynamic, linear, llama3, yarn",
           ExitCode::unavailable);
  }
  return rope;
}

}  // namespace qpipe
