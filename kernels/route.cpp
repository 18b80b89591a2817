#include "kernels/route.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace qpipe {

namespace {

// The order of choice as integers, larger first: the value (NaN least, then −∞), then the lower
// index. No two indices have equal keys, and none has 0.
std::uint64_t key(float value, std::int64_t index) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);  // −0 becomes +0
  const std::uint32_t ordered = std::isnan(value)    ? 0u
                                : (bits >> 31) != 0u ? ~bits
                                                     : bits | 0x80000000u;
  return (std::uint64_t{ordered} << 32) | (0xffffffffu - static_cast<std::uint32_t>(index));
}

// The key of the count-th largest.
std::uint64_t last_chosen(std::vector<std::uint64_t> keys, std::int64_t count) {
  std::nth_element(keys.begin(), keys.begin() + (count - 1), keys.end(), std::greater<>());
  return keys[static_cast<std::size_t>(count - 1)];
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// Σ_e term(e) in the order of the header.
template <class Term>
float sum(std::int64_t experts, Term term) {
  std::array<float, 32> part{};
  for (std::int64_t e = 0; e < experts; ++e) part[static_cast<std::size_t>(e % 32)] += term(e);
  for (std::size_t step = 16; step > 0; step /= 2)
    for (std::size_t i = 0; i < step; ++i) part[i] += part[i + step];
  return part[0];
}

// The expert with the largest logit but for `without`.
std::int64_t best_expert(const float* logits, std::int64_t experts, std::int64_t without) {
  std::int64_t best = without == 0 ? 1 : 0;
  for (std::int64_t e = 0; e < experts; ++e)
    if (e != without && key(logits[e], e) > key(logits[best], best)) best = e;
  return best;
}

void softmax(const float* logits, std::int64_t experts, float* s) {
  const float largest = logits[best_expert(logits, experts, -1)];
  for (std::int64_t e = 0; e < experts; ++e) s[e] = std::exp(logits[e] - largest);
  const float total = sum(experts, [&](std::int64_t e) { return s[e]; });
  for (std::int64_t e = 0; e < experts; ++e) s[e] /= total;
}

// Keys of experts outside of the best groups become 0.
void keep_best_groups(const float* choice, const RouteOptions& options,
                      std::vector<std::uint64_t>& keys) {
  const auto experts = static_cast<std::int64_t>(keys.size());
  const std::int64_t size = experts / options.groups;
  std::vector<std::uint64_t> group_keys(static_cast<std::size_t>(options.groups));
  for (std::int64_t g = 0; g < options.groups; ++g) {
    const auto begin = keys.begin() + g * size;
    std::int64_t best = std::max_element(begin, begin + size) - keys.begin();
    float score = choice[best];
    if (options.group_score == GroupScore::two_best) {
      std::vector<std::uint64_t> rest(begin, begin + size);
      rest[static_cast<std::size_t>(best - g * size)] = 0;
      best = g * size + (std::max_element(rest.begin(), rest.end()) - rest.begin());
      score += choice[best];
    }
    group_keys[static_cast<std::size_t>(g)] = key(score, g);
  }
  const std::uint64_t last = last_chosen(group_keys, options.top_groups);
  for (std::int64_t e = 0; e < experts; ++e)
    if (group_keys[static_cast<std::size_t>(e / size)] < last)
      keys[static_cast<std::size_t>(e)] = 0;
}

void route_token(const float* logits, const float* correction, const RouteOptions& options,
                 std::int64_t experts, std::int32_t* expert, float* weight) {
  const auto count = static_cast<std::size_t>(experts);
  std::vector<float> s(count);
  if (options.scoring == Scoring::softmax)
    softmax(logits, experts, s.data());
  else if (options.scoring == Scoring::sigmoid)
    std::transform(logits, logits + experts, s.begin(), sigmoid);
  else
    std::copy(logits, logits + experts, s.begin());

  std::vector<float> choice = s;
  if (correction != nullptr)
    for (std::size_t e = 0; e < count; ++e) choice[e] += correction[e];
  std::vector<std::uint64_t> keys(count);
  for (std::int64_t e = 0; e < experts; ++e)
    keys[static_cast<std::size_t>(e)] = key(choice[static_cast<std::size_t>(e)], e);
  if (options.groups > 1) keep_best_groups(choice.data(), options, keys);

  const std::uint64_t last = last_chosen(keys, options.top_k);
  std::int64_t slot = 0;
  for (std::int64_t e = 0; e < experts; ++e)
    if (keys[static_cast<std::size_t>(e)] >= last) {
      const float score = s[static_cast<std::size_t>(e)];
      expert[slot] = static_cast<std::int32_t>(e);
      weight[slot++] = options.scoring == Scoring::logits ? sigmoid(score) : score;
    }
}

void sparse_mixer_token(const float* logits, float threshold, std::int64_t experts,
                        std::int32_t* expert, float* weight) {
  const auto weight_of = [&](std::int64_t chosen, std::int64_t without) {
    const float largest = logits[chosen];
    return 1.0f / sum(experts, [&](std::int64_t e) {
             const float distance = (largest - logits[e]) / std::max(std::abs(logits[e]), largest);
             const bool far = distance > threshold;  // 0 / 0 is not
             return e == without || far ? 0.0f : std::exp(logits[e] - largest);
           });
  };
  const std::int64_t first = best_expert(logits, experts, -1);
  const std::int64_t second = best_expert(logits, experts, first);
  const int slot = first < second ? 0 : 1;
  expert[slot] = static_cast<std::int32_t>(first);
  weight[slot] = weight_of(first, -1);
  expert[1 - slot] = static_cast<std::int32_t>(second);
  weight[1 - slot] = weight_of(second, first);
}

void check_arguments(Matrix<const float> logits, Matrix<const float> correction,
                     Matrix<const float> expert_scale, const RouteOptions& options,
                     Matrix<std::int32_t> expert, Matrix<float> weight) {
  const std::int64_t experts = logits.cols;
  const auto row_or_empty = [&](Matrix<const float> m) {
    return m.empty() || (m.rows == 1 && m.cols == experts);
  };
  require(row_or_empty(correction) && row_or_empty(expert_scale),
          "route: correction and expert_scale must be [1, experts] or empty");
  require(options.top_k > 0 && options.top_k <= experts &&
              experts <= std::numeric_limits<std::int32_t>::max(),
          "route: top_k must lie between 1 and the number of experts");
  require(expert.rows == logits.rows && weight.rows == logits.rows &&
              expert.cols == options.top_k && weight.cols == options.top_k,
          "route: expert and weight must be [tokens, top_k]");
  require(options.groups > 0 && experts % options.groups == 0 && options.top_groups > 0 &&
              options.top_groups <= options.groups &&
              options.top_groups * (experts / options.groups) >= options.top_k,
          "route: top_groups of the groups of equal size must hold top_k experts");
  require(options.groups == 1 || options.group_score == GroupScore::best ||
              experts / options.groups > 1,
          "route: a group of one expert has no two best");
  require(options.scoring != Scoring::sparse_mixer ||
              (options.top_k == 2 && options.groups == 1 && correction.empty()),
          "route: the sparse mixer takes two experts of one group, without a correction");
}

}  // namespace

void route(Matrix<const float> logits, Matrix<const float> correction,
           Matrix<const float> expert_scale, const RouteOptions& options,
           Matrix<std::int32_t> expert, Matrix<float> weight, Stream& stream) {
  check_arguments(logits, correction, expert_scale, options, expert, weight);
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::route(logits, correction, expert_scale, options, expert, weight, stream);
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    float* w = weight.row(t);
    if (options.scoring == Scoring::sparse_mixer)
      sparse_mixer_token(logits.row(t), options.threshold, logits.cols, expert.row(t), w);
    else
      route_token(logits.row(t), correction.data, options, logits.cols, expert.row(t), w);
    float total = 0.0f;
    for (std::int64_t s = 0; s < weight.cols; ++s) total += w[s];
    for (std::int64_t s = 0; s < weight.cols; ++s) {
      if (options.normalize) w[s] /= total + options.normalize_eps;
      w[s] *= options.scaling;
      if (!expert_scale.empty()) w[s] *= expert_scale(0, expert(t, s));
    }
  }
}

}  // namespace qpipe
