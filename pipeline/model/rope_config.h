// Rotary positions as config.json describes them: rope_theta with rope_scaling {"type" or
// "rope_type"} (older), or rope_parameters (newer).
#pragma once

#include "pipeline/model/config_json.h"
#include "stages/architecture.h"

namespace qpipe {

struct RopeRule {
  std::int64_t head_dim = 0;
  std::int64_t max_positions = 0;
  bool interleaved = false;
  bool partial = false;  // the family rotates partial_rotary_factor · head_dim columns
};

// Inverse frequencies and amplitude for the kinds default, linear, dynamic, llama3 and yarn, in
// float32 as the reference computes them (transformers, modeling_rope_utils.py). With d the rotated
// width, θ = rope_theta and f_i = θ^(−2i/d):
//   linear:   f_i / factor
//   dynamic:  f_i up to max_positions tokens; Rope::longest says so
//   llama3:   wavelength λ = 2π/f_i, original length L. λ < L/high: f_i; λ > L/low: f_i/factor;
//             between them (1 − s) f_i/factor + s f_i with s = (L/λ − low)/(high − low)
//   yarn:     r_i f_i/factor + (1 − r_i) f_i, r the ramp from 0 to 1 between the dimensions that
//             turn beta_fast and beta_slow times in L; amplitude attention_factor, or
//             m(mscale)/m(mscale_all_dim), or m(1), with m(x) = 0.1 x ln(factor) + 1
// Throws UserError for other kinds, odd widths and values out of range.
Rope read_rope(const ConfigJson& config, const RopeRule& rule);

}  // namespace qpipe
