// Codes for the linears of one step: GPTQ with the step's Hessian, or round to nearest.
//
// The rows of all linears are cut into fixed blocks and shared over the ranks; each factor is
// computed by one owner and broadcast, or, where it is large, by all ranks (stages/factor_team.h);
// codes are gathered, so that every rank ends with everything.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/comm.h"
#include "stages/calibrate.h"
#include "stages/layer.h"

namespace qpipe {

enum class Method { gptq, rtn };

// Rows are dealt to ranks in blocks of 32. A rank holds at most 1 GiB of them in float32.
inline constexpr std::int64_t solved_row_block = 32;
constexpr std::int64_t rows_solved_at_once(std::int64_t in_features) {
  return std::max<std::int64_t>(2048, (std::int64_t{1} << 28) / in_features / 128 * 128);
}

// How one module is quantized.
struct LinearSettings {
  bool skip = false;
  Method method = Method::gptq;
  int bits = 4;
  std::int64_t group_size = 128;  // -1: one group per output
  bool symmetric = true;
  bool desc_act = false;
  bool static_groups = false;
  bool act_group_aware = false;
  float mse_norm = 0.0f;
  bool weighted_search = false;  // of scales (SweepOptions)
  double damp_percent = 0.01;
  double damp_increment = 0.01;

  std::int64_t group_columns(std::int64_t in_features) const {
    return group_size > 0 ? group_size : in_features;
  }
  std::int64_t groups(std::int64_t in_features) const {
    return in_features / group_columns(in_features);
  }
};

// A solved linear, on every rank: w[n, k] = scale[n, g] · (code[n, k] − zero[n, g]), g =
// group_of[k].
struct QuantizedLinear {
  LinearSettings settings;
  Array<std::uint8_t> code;  // [out, in], columns in the checkpoint's order
  Array<float> scale;        // [out, groups], values of float16
  Array<std::uint8_t> zero;  // [out, groups]
  std::vector<std::int32_t>
      group_of;  // [in]: column → group as solved, which indexes scale and zero
  std::vector<std::int32_t> stored_group;  // [groups]: group as solved → group as stored (not the
                                           // identity for act_group_aware)
  bool has_zero_of_zero = false;           // some zero is 0: format v1 cannot hold it
  double mean_squared_error = 0.0;  // (1/out) Σ Δw H Δwᵀ: the mean squared output error per element
                                    // on the calibration tokens
  double damp = 0.0;        // the damp_percent that succeeded
  double agreement = -1.0;  // of the halves of the samples on the original's target
                            // (stages/original_target.h); −1: the layer's own output is aimed at
  bool fell_back = false;   // no damping made H positive definite: rounded to nearest
  std::shared_ptr<Buffer> shared;  // where code, scale and zero lie when not in memory of their own
  struct GroupsOnDevice {
    std::shared_ptr<Array<std::int32_t>> memory;
    Matrix<const std::int32_t> view;
  };
  GroupsOnDevice group_of_on_device;  // group_of, where it is there already
};

// Solves `linears` (all read the same input, none skipped). hessian: needed when a method is gptq,
// may be null for RTN; its cross moments, which are used up, move what GPTQ aims at
// (stages/original_target.h). Collective. Throws std::domain_error naming the module when a scale
// is not finite.
std::vector<QuantizedLinear> solve(Hessian* hessian, const std::vector<const Linear*>& linears,
                                   const std::vector<LinearSettings>& settings, Comm& comm,
                                   Stream& stream);

// The same for other weights than the checkpoint's: rows_of gives some rows of linears[i] as they
// are to be quantized, this rank's alone.
using RowsOf = std::function<Array<float>(std::size_t i, const RowRange& rows)>;
std::vector<QuantizedLinear> solve(Hessian* hessian, const std::vector<const Linear*>& linears,
                                   const std::vector<LinearSettings>& settings,
                                   const RowsOf& rows_of, Comm& comm, Stream& stream);

// A linear before any row is solved: its shapes, without memory.
QuantizedLinear outline_of(const Linear& linear, const LinearSettings& settings);

// One rank's solved linears for others, which have their outlines: what is known of them on the
// host, and code, scale and zero of all of them one after the other in memory that others share.
std::string outcome_of(const std::vector<QuantizedLinear>& linears);
void set_outcome(const std::string& outcome, std::vector<QuantizedLinear>& linears);
std::size_t shared_bytes(const std::vector<QuantizedLinear>& linears);
struct SharedPlace {
  std::shared_ptr<Buffer> memory;
  std::size_t offset = 0;  // bytes, a multiple of 256
};
void place(std::vector<QuantizedLinear>& linears, const SharedPlace& at);
void forget_codes(std::vector<QuantizedLinear>& linears);  // outlines are left
// The same with what they hold. Returns the memory that they had, from which the stream copies.
std::vector<Buffer> move_to(const SharedPlace& at, std::vector<QuantizedLinear>& linears,
                            Stream& stream);

// weight = the dequantized codes, in the compute type.
void dequantize_into(const QuantizedLinear& quantized, Tensor weight, Stream& stream);

}  // namespace qpipe
