#include "pipeline/model/rope_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace qpipe {

namespace {

using Json = nlohmann::json;
constexpr std::int64_t longest_context = std::int64_t{1} << 40;

constexpr std::array layer_types{"full_attention", "sliding_attention", "chunked_attention"};

bool is_by_layer_type(const Json& object) {
  return std::any_of(layer_types.begin(), layer_types.end(),
                     [&](const char* type) { return object.contains(type); });
}

struct Context {
  const ConfigJson& config;
  const ConfigJson& scaling;
  const RopeRule& rule;
  double theta;
};

std::int64_t original_positions(const Context& c) {
  const std::string key = "original_max_position_embeddings";
  if (has_key(c.config, key)) return read_integer(c.config, key, 1, longest_context);
  if (c.rule.original_positions > 0) return c.rule.original_positions;
  return has_key(c.scaling, key) ? read_integer(c.scaling, key, 1, longest_context)
                                 : c.rule.max_positions;
}

// max_positions / original length where `factor` is null or absent.
double length_factor(const Context& c, double original) {
  return find_value(c.scaling, "factor") == nullptr
             ? static_cast<double>(c.rule.max_positions) / original
             : read_positive(c.scaling, "factor");
}

void scale_linear(const Context& c, Rope& rope) {
  const auto factor = static_cast<float>(read_positive(c.scaling, "factor"));
  for (float& f : rope.inverse_frequencies) f /= factor;
}

void scale_llama3(const Context& c, Rope& rope) {
  const auto factor = static_cast<float>(read_positive(c.scaling, "factor"));
  const double low = read_positive(c.scaling, "low_freq_factor");
  const double high = read_positive(c.scaling, "high_freq_factor");
  if (high < low) refuse(c.scaling, "high_freq_factor", "must not be below low_freq_factor");
  const auto original = static_cast<double>(original_positions(c));
  const auto longest_wave = static_cast<float>(original / low);
  const auto shortest_wave = static_cast<float>(original / high);
  for (float& f : rope.inverse_frequencies) {
    const float wave = static_cast<float>(2.0 * std::numbers::pi) / f;
    if (wave > longest_wave) {
      f /= factor;
    } else if (wave > shortest_wave) {
      const float smooth = (static_cast<float>(original) / wave - static_cast<float>(low)) /
                           static_cast<float>(high - low);
      f = (1.0f - smooth) * f / factor + smooth * f;
    }
  }
}

// YaRN's magnitude of positions that are `factor` times as many.
double magnitude(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// Zero and null mean absent, as in the reference.
double positive_or(const ConfigJson& scaling, const std::string& key, double otherwise) {
  const Json* value = find_value(scaling, key);
  return value == nullptr || (value->is_number() && value->get<double>() == 0.0)
             ? otherwise
             : read_positive(scaling, key);
}

void scale_yarn(const Context& c, std::int64_t rotated, Rope& rope) {
  const auto original = static_cast<double>(original_positions(c));
  const double factor = is_null(c.scaling, "factor") ? length_factor(c, original)
                                                     : read_positive(c.scaling, "factor");
  const double mscale = positive_or(c.scaling, "mscale", 0.0);
  const double mscale_all = positive_or(c.scaling, "mscale_all_dim", 0.0);
  const double derived = mscale > 0.0 && mscale_all > 0.0
                             ? magnitude(factor, mscale) / magnitude(factor, mscale_all)
                             : magnitude(factor, 1.0);
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
  double low = dimension(positive_or(c.scaling, "beta_fast", 32.0));
  double high = dimension(positive_or(c.scaling, "beta_slow", 1.0));
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

// One divisor for each frequency.
std::vector<float> read_divisors(const Context& c, const std::string& key, std::size_t count) {
  const Json* values = find_value(c.scaling, key);
  const auto is_divisor = [](const Json& v) { return v.is_number() && v.get<double>() > 0.0; };
  if (values == nullptr || !values->is_array() || values->size() != count ||
      !std::all_of(values->begin(), values->end(), is_divisor))
    refuse(c.scaling, key,
           "must be an array of " + std::to_string(count) +
               " numbers above 0, one for each pair of columns that is rotated");
  return values->get<std::vector<float>>();
}

void scale_longrope(const Context& c, std::int64_t rotated, Rope& rope) {
  rope.longest = original_positions(c);
  const auto original = static_cast<double>(rope.longest);
  const double factor = length_factor(c, original);
  const bool given = find_value(c.scaling, "attention_factor") != nullptr;
  const double amplitude = given          ? read_positive(c.scaling, "attention_factor")
                           : factor > 1.0 ? std::sqrt(1.0 + std::log(factor) / std::log(original))
                                          : 1.0;
  const auto or_amplitude = [&](const char* key) {
    return static_cast<float>(has_key(c.scaling, key) ? read_positive(c.scaling, key) : amplitude);
  };
  rope.amplitude = or_amplitude("short_mscale");
  rope.longer_amplitude = or_amplitude("long_mscale");
  const std::size_t count = rope.inverse_frequencies.size();
  const std::vector<float> shorter = read_divisors(c, "short_factor", count);
  const std::vector<float> longer = read_divisors(c, "long_factor", count);
  rope.longer_frequencies.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const float position = std::pow(static_cast<float>(c.theta),
                                    static_cast<float>(2 * i) / static_cast<float>(rotated));
    rope.inverse_frequencies[i] = 1.0f / (shorter[i] * position);
    rope.longer_frequencies[i] = 1.0f / (longer[i] * position);
  }
}

std::vector<float> frequencies(double theta, std::int64_t columns, std::int64_t width) {
  std::vector<float> f;
  for (std::int64_t i = 0; i < columns; i += 2)
    f.push_back(1.0f / std::pow(static_cast<float>(theta),
                                static_cast<float>(i) / static_cast<float>(width)));
  return f;
}

// partial_rotary_factor of the object, or else of config.json.
double read_fraction(const Context& c, bool allowed) {
  const bool inside = has_key(c.scaling, "partial_rotary_factor");
  const ConfigJson& from = inside ? c.scaling : c.config;
  const std::string key = inside ? "partial_rotary_factor" : c.rule.share_key;
  if (find_value(from, key) == nullptr) return c.rule.share;
  const double fraction = read_positive(from, key);
  if (fraction > 1.0) refuse(from, key, "must be at most 1");
  if (fraction != 1.0 && !allowed)
    refuse(from, key, "must be 1: this family rotates whole heads", ExitCode::unavailable);
  return fraction;
}

std::string kind_key_of(const ConfigJson& scaling) {
  return has_key(scaling, "rope_type") || !has_key(scaling, "type") ? "rope_type" : "type";
}

std::string kind_of(const ConfigJson& scaling) {
  const std::string kind = read_text(scaling, kind_key_of(scaling), "default");
  // Phi-3's first names for it.
  if (kind == "su" || (kind == "yarn" && has_key(scaling, "long_factor"))) return "longrope";
  return kind == "mrope" ? "default" : kind;
}

}  // namespace

// rope_scaling counts unless it is empty, as in transformers.
ConfigJson rope_object(const ConfigJson& config, const RopeRule& rule) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* value = find_value(config, key);
    if (value == nullptr) continue;
    if (!value->is_object()) refuse(config, key, "must be an object or null");
    const std::string where = config.where + ": " + key;
    if (is_by_layer_type(*value)) {
      if (rule.layer_type.empty())
        refuse(config, key, "must be one object for all layers of this family",
               ExitCode::unavailable);
      const auto found = value->find(rule.layer_type);
      if (found == value->end() || found->is_null()) return {rule.absent, where};
      if (!found->is_object())
        refuse({*value, where}, rule.layer_type, "must be an object or null");
      return {*found, where + ": " + rule.layer_type};
    }
    if (!value->empty() && rule.scaled) return {*value, where};
  }
  return {rule.absent, config.where};
}

Rope read_rope(const ConfigJson& config, const RopeRule& rule) {
  const ConfigJson scaling = rope_object(config, rule);
  // They decide nothing where the object has its own, or its kind needs none.
  skip_keys(config, {"rope_theta", rule.theta_key, "partial_rotary_factor", rule.share_key,
                     "original_max_position_embeddings"});
  const bool inside = find_value(scaling, "rope_theta") != nullptr;
  const ConfigJson& theta_from = inside ? scaling : config;
  const std::string theta_key = inside ? "rope_theta" : rule.theta_key;
  const double theta = find_value(theta_from, theta_key) == nullptr
                           ? rule.theta
                           : read_positive(theta_from, theta_key);
  const Context context{config, scaling, rule, theta};
  const std::string kind = kind_of(scaling);
  const bool proportional = kind == "proportional";

  const auto width = static_cast<double>(rule.head_dim);
  const double fraction = read_fraction(context, rule.partial || proportional);
  const std::int64_t rotated = proportional ? 2 * static_cast<std::int64_t>(fraction * width / 2.0)
                                            : static_cast<std::int64_t>(width * fraction);
  if (rotated < 2 || rotated % 2 != 0)
    throw UserError(ExitCode::data,
                    config.where + ": rotary positions turn pairs of columns, but " +
                        std::to_string(rotated) + " columns of each head (head_dim " +
                        std::to_string(rule.head_dim) +
                        ") are to be rotated: an even number from 2 is needed");

  Rope rope;
  rope.enabled = true;
  rope.interleaved = rule.interleaved;
  rope.inverse_frequencies = frequencies(theta, rotated, proportional ? rule.head_dim : rotated);
  if (kind == "linear") {
    scale_linear(context, rope);
  } else if (kind == "dynamic" && find_value(scaling, "alpha") != nullptr) {
    const double exponent = static_cast<double>(rotated) / static_cast<double>(rotated - 2);
    rope.inverse_frequencies =
        frequencies(theta * std::pow(read_positive(scaling, "alpha"), exponent), rotated, rotated);
  } else if (kind == "dynamic") {
    read_positive(scaling, "factor");
    rope.longest = rule.max_positions;
  } else if (kind == "llama3") {
    scale_llama3(context, rope);
  } else if (kind == "yarn") {
    scale_yarn(context, rotated, rope);
  } else if (kind == "longrope") {
    scale_longrope(context, rotated, rope);
  } else if (proportional) {
    if (has_key(scaling, "factor")) scale_linear(context, rope);
    rope.inverse_frequencies.resize(static_cast<std::size_t>(rule.head_dim / 2), 0.0f);
  } else if (kind != "default") {
    refuse(scaling, kind_key_of(scaling),
           "must be one of default, dynamic, linear, llama3, longrope, mrope, proportional, yarn",
           ExitCode::unavailable);
  }
  return rope;
}

QueryScale read_query_scale(const ConfigJson& config, const RopeRule& rule) {
  const ConfigJson object = rope_object(config, rule);
  QueryScale scale;
  if (find_value(object, "llama_4_scaling_beta") == nullptr) return scale;
  scale.beta = static_cast<float>(read_positive(object, "llama_4_scaling_beta"));
  scale.positions = read_integer(object, "original_max_position_embeddings", 1, longest_context);
  return scale;
}

double read_score_factor(const ConfigJson& config, const RopeRule& rule) {
  const ConfigJson scaling = rope_object(config, rule);
  const double mscale_all = positive_or(scaling, "mscale_all_dim", 0.0);
  if (kind_of(scaling) == "default" || mscale_all == 0.0) return 1.0;
  const double m = magnitude(read_positive(scaling, "factor"), mscale_all);
  return m * m;
}

}  // namespace qpipe
