// AWQ's search for the factors s of a pair's input columns: those that make x diag(s)⁻¹ · Q(W
// diag(s))ᵀ nearest to x Wᵀ. Source: Lin et al. 2024 (AWQ); AutoAWQ's search as formats.md §2
// states it.
#pragma once

#include <vector>

#include "stages/awq_pairs.h"
#include "stages/calibrate.h"
#include "stages/solve.h"

namespace qpipe {

// Rows of a linear whose Gram losses are added on one device, in fixed blocks.
inline constexpr std::int64_t gram_row_block = 512;

// How the pairs' losses are measured. exact: pairs below a norm by the output of the attention or
// the MLP over all tokens, others as gram. gram: the linears' own outputs, tr(ΔW H ΔWᵀ) with the
// Hessian H, added over the pair's linears; needs no forward pass.
enum class ScaleLoss { exact, gram };

struct ScaleSearch {
  ScaleLoss loss = ScaleLoss::exact;
  std::int64_t grid = 20;   // ratios i/grid, i = 0 … grid − 1
  bool duo_scaling = true;  // weigh with the weights' relative magnitude, too
  // exact: outputs are compared on blocks of about this many tokens, evenly spaced over the
  // calibration set; 0: on all. SmolLM2's perplexity is the same with a half and with all of its
  // 65,536 tokens.
  std::int64_t tokens = 32768;
  // Gram losses are those of about this many rows of each linear, evenly spaced, and at least of so
  // many; 0: of all. Rows have independent errors, and all candidates are compared on the same
  // ones.
  std::int64_t rows = 1024;
};

// Whether the pair's loss is measured with the step's Hessian.
bool needs_hessian(const ScaleSearch& search, const ScalingPair& pair);

// A pair with its factors, the same on every rank.
struct ScaledPair {
  ScalingPair pair;
  std::vector<float> scale;  // [d], positive and finite
  double ratio = 0.0;
  double loss = 0.0;  // exact: mean squared error of an output element; gram: Σ over outputs of
                      // their mean squared errors, as sampled
};

// w̄ = mean over the rows of the pair's quantized linears of |w| / (max |w| of its group + 1e-6),
// [d].
std::vector<double> mean_relative_magnitude(const Layer& layer, const ScalingPair& pair,
                                            const std::vector<LinearSettings>& settings,
                                            Stream& stream);

// One row of factors for each ratio r: s = max(x̄^r / (w̄^(1−r) + 1e-4), 1e-4) with duo scaling,
// else max(x̄^r, 1e-4); then s /= √(max s · min s), and 1 where that is not a positive finite
// float32. x̄ and w̄ [d].
std::vector<std::vector<float>> candidate_scales(const std::vector<double>& activation,
                                                 const std::vector<double>& weight,
                                                 const ScaleSearch& options);

// Q is each linear's own grid, found for every candidate from the weights that the checkpoint has;
// linears with settings.skip keep their weights, whatever the factors. The first of equal losses
// wins. settings: of pair.linears, at least one not skipped. activations: at the pair's step, made
// with the original weights; unchanged (scratch is used). hessians: of the pair's groups, in their
// order, wherever they are; with several groups each counts with its share of the tokens.
// Collective; the result does not depend on the number of ranks. Throws
// std::runtime_error naming the pair's first linear when no candidate has a finite loss.
ScaledPair search_scale(const DecoderTables& tables, Layer& layer, const ScalingPair& pair,
                        const std::vector<LinearSettings>& settings, const Activations& activations,
                        const std::vector<Hessian*>& hessians, const ScaleSearch& options,
                        Comm& comm, Stream& stream);

// The loss of the pair for each row of `scales`: what search_scale minimises.
std::vector<double> scale_losses(const DecoderTables& tables, Layer& layer, const ScalingPair& pair,
                                 const std::vector<LinearSettings>& settings,
                                 const Activations& activations,
                                 const std::vector<Hessian*>& hessians,
                                 const std::vector<std::vector<float>>& scales,
                                 const ScaleSearch& options, Comm& comm, Stream& stream);

}  // namespace qpipe
