// Which experts a token goes to, and with which weights.
#pragma once

#include "kernels/stream.h"

namespace qpipe {

enum class Scoring {
  softmax,       // s = softmax(logits) over all experts; normalized, that over the chosen ones
  sigmoid,       // s = σ(logits)
  logits,        // chosen by the logits, weights σ(logits) (Llama 4)
  sparse_mixer,  // two experts, each by its own softmax (PhiMoE); below
};

// What a group of experts is judged by: its best (DeepSeek-V2) or the sum of its two best
// (DeepSeek-V3) values of s + correction.
enum class GroupScore { best, two_best };

struct RouteOptions {
  std::int64_t top_k = 1;
  Scoring scoring = Scoring::softmax;
  bool normalize = false;  // weights are divided by their sum + normalize_eps
  float normalize_eps = 1e-20f;
  float scaling = 1.0f;     // weights are multiplied by it
  std::int64_t groups = 1;  // of experts / groups consecutive experts each
  std::int64_t top_groups = 1;
  GroupScore group_score = GroupScore::best;
  float threshold = 0.02f;  // of sparse_mixer: twice the router's jitter
  bool operator==(const RouteOptions&) const = default;
};

// The experts of each token and their weights.   logits [T, E]; correction, expert_scale [1, E] or
// empty; expert, weight [T, k] with 1 ≤ k ≤ E.
//
// Chosen are the k experts with the largest s + correction; where there is more than one group,
// only experts of the top_groups groups with the largest scores are. Of equal values (+0 and −0
// are) the lower index comes first; NaN comes after −∞, so that k distinct experts are chosen
// whatever the logits are. They are written in ascending order of their indices, and their weights
// with them: s, without the correction, then normalized, then times scaling, then times
// expert_scale of the expert.
//
// softmax: e^(l − max l) / Σ e^(l − max l). The sum has 32 parts, each of the experts with one
// e mod 32 in ascending order; halves of the parts are then added to each other, 16, 8, 4, 2, 1.
// normalize adds weights in ascending order of their experts. All arithmetic is in float32, each
// operation rounded, with the backend's e^x: backends differ in the last bits, and so in what is
// chosen where scores nearly tie. A token's result depends on its own logits alone.
//
// sparse_mixer: the first expert is that of the largest logit m, its weight that of a softmax over
// the experts with (m − l) / max(|l|, m) ≤ threshold (0 / 0 is). The second: the same without the
// first expert, m the largest of the others. k = 2, one group, no correction.
//
// Throws std::invalid_argument for shapes and options other than these, for top_groups with fewer
// than k experts, for two_best of groups of one expert, and on CUDA for more than 1024 experts.
void route(Matrix<const float> logits, Matrix<const float> correction,
           Matrix<const float> expert_scale, const RouteOptions& options,
           Matrix<std::int32_t> expert, Matrix<float> weight, Stream& stream);

namespace cuda {
decltype(qpipe::route) route;
}  // namespace cuda

}  // namespace qpipe
