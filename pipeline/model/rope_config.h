// Rotary positions as config.json describes them: rope_theta with rope_scaling {"type" or
// "rope_type"} (older), or rope_parameters (newer).
#pragma once

#include "pipeline/model/config_json.h"
#include "stages/architecture.h"

namespace qpipe {

// What a family's configuration class and attention make of those keys.
struct RopeRule {
  std::int64_t head_dim = 0;
  std::int64_t max_positions = 0;
  bool interleaved = false;
  bool partial = false;  // the family rotates partial_rotary_factor · head_dim columns
  double share = 1.0;    // of a head, where no key gives it
  std::string share_key = "partial_rotary_factor";  // outside of the object
  double theta = 10000.0;                           // where no key gives it
  std::string theta_key = "rope_theta";             // outside of the object
  // rope_parameters may hold an object for each type of layer: the one that counts. Empty: the
  // family has one for all.
  std::string layer_type = {};
  bool scaled = true;  // an object that is not by type of layer counts for these layers
  std::int64_t original_positions = 0;  // without a key at the top; 0: what the object says
  nlohmann::json absent = nlohmann::json::object();  // the object where config.json has none
};

// The object with the kind's parameters that counts for the rule, as read_rope takes it. The rule
// must stay.
ConfigJson rope_object(const ConfigJson& config, const RopeRule& rule);

// Inverse frequencies and amplitude in float32 as the reference computes them (transformers,
// modeling_rope_utils.py). With d the rotated width, θ = rope_theta and f_i = θ^(−2i/d):
//   default, mrope (the positions of text): f_i
//   linear:   f_i / factor
//   dynamic:  f_i up to max_positions tokens; Rope::longest says so. With alpha (Hunyuan): those of
//             θ · alpha^(d/(d − 2)) for any length
//   llama3:   wavelength λ = 2π/f_i, original length L. λ < L/high: f_i; λ > L/low: f_i/factor;
//             between them (1 − s) f_i/factor + s f_i with s = (L/λ − low)/(high − low)
//   yarn:     r_i f_i/factor + (1 − r_i) f_i, r the ramp from 0 to 1 between the dimensions that
//             turn beta_fast and beta_slow times in L; amplitude attention_factor, or
//             m(mscale)/m(mscale_all_dim), or m(1), with m(x) = 0.1 x ln(factor) + 1
//   longrope (su): f_i / short_factor_i up to L tokens, f_i / long_factor_i beyond; amplitude
//             short_mscale and long_mscale (PhiMoE), or attention_factor, or √(1 + ln(s)/ln(L))
//             with s = factor, or max_positions/L, if s > 1
//   proportional: θ^(−2i/head_dim) / factor for the first partial_rotary_factor of the pairs, 0 for
//             the others, which stay as they are
// Throws UserError for other kinds, odd widths and values out of range.
Rope read_rope(const ConfigJson& config, const RopeRule& rule);

// Mistral's queries that grow with their position: llama_4_scaling_beta and
// original_max_position_embeddings of the object. β 0 without the first.
QueryScale read_query_scale(const ConfigJson& config, const RopeRule& rule);

// What DeepSeek's attention multiplies its scores with for longer contexts: (0.1 mscale_all_dim
// ln(factor) + 1)², 1 where positions are not scaled or mscale_all_dim is 0 or not there.
double read_score_factor(const ConfigJson& config, const RopeRule& rule);

}  // namespace qpipe
