#include <algorithm>

#include "kernels/cuda_handles.h"
#include "kernels/route.h"

namespace qpipe::cuda {

namespace {

// One warp a token: lane l has the experts e with e mod 32 = l.
constexpr int warp = 32;
constexpr int warps_per_block = 2;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr std::int64_t most_experts = 1024;

struct Router {
  const float* logits;
  std::int64_t logits_stride;
  const float* correction;  // may be null, as expert_scale
  const float* expert_scale;
  std::int32_t* expert;
  std::int64_t expert_stride;
  float* weight;
  std::int64_t weight_stride;
  std::int64_t tokens;
  int experts;
  int top_k;
  Scoring scoring;
  bool normalize;
  float normalize_eps;
  float scaling;
  int groups;
  int top_groups;
  GroupScore group_score;
  float threshold;

  // What a warp has in shared memory: the scores, the order of the experts and of the groups, the
  // weights of the chosen.
  __host__ __device__ int shared_elements() const { return 2 * experts + groups + top_k; }
};

// Larger values have larger orders; NaN has the least but `excluded`.
constexpr unsigned excluded = 0;
__device__ unsigned order_of(float value) {
  if (isnan(value)) return 1;
  const unsigned bits = __float_as_uint(value + 0.0f);  // −0 becomes +0
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// The order of choice: by value, then the lower index. No two indices have equal keys; 0 is never
// chosen.
__device__ unsigned long long key(unsigned order, int index) {
  if (order == excluded) return 0;
  return static_cast<unsigned long long>(order) << 32 | (all_lanes - static_cast<unsigned>(index));
}
__device__ int index_of(unsigned long long key) {
  return static_cast<int>(all_lanes - static_cast<unsigned>(key));
}

// Over the lanes of a warp; all lanes have the result.
__device__ unsigned long long largest(unsigned long long x) {
  for (int step = warp / 2; step > 0; step /= 2) x = max(x, __shfl_xor_sync(all_lanes, x, step));
  return x;
}
__device__ float sum(float x) {
  for (int step = warp / 2; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The largest key of order_of_index(i), 0 ≤ i < count, that is less than `below`.
template <class OrderOfIndex>
__device__ unsigned long long next_key(int count, unsigned long long below, int lane,
                                       OrderOfIndex order_of_index) {
  unsigned long long best = 0;
  for (int i = lane; i < count; i += warp) {
    const unsigned long long candidate = key(order_of_index(i), i);
    if (candidate < below) best = max(best, candidate);
  }
  return largest(best);
}

// The key of the chosen-th best: what is chosen has this one or a larger one.
__device__ unsigned long long last_chosen(const unsigned* order, int count, int chosen, int lane) {
  unsigned long long last = ~0ull;
  for (int i = 0; i < chosen; ++i)
    last = next_key(count, last, lane, [&](int j) { return order[j]; });
  return last;
}

__device__ void write_scores(const Router& r, const float* logits, int lane, float* s) {
  if (r.scoring != Scoring::softmax) {
    for (int e = lane; e < r.experts; e += warp)
      s[e] = r.scoring == Scoring::sigmoid ? sigmoid(logits[e]) : logits[e];
    return;
  }
  const float most = logits[index_of(
      next_key(r.experts, ~0ull, lane, [&](int e) { return order_of(logits[e]); }))];
  float part = 0.0f;
  for (int e = lane; e < r.experts; e += warp) {
    s[e] = expf(logits[e] - most);
    part += s[e];
  }
  const float total = sum(part);
  for (int e = lane; e < r.experts; e += warp) s[e] /= total;
}

// Excludes the experts outside of the best groups.
__device__ void keep_best_groups(const Router& r, const float* s, int lane, unsigned* order,
                                 unsigned* group_order) {
  const int size = r.experts / r.groups;
  const auto choice = [&](int e) {
    return r.correction == nullptr ? s[e] : s[e] + r.correction[e];
  };
  for (int g = 0; g < r.groups; ++g) {
    const int begin = g * size;
    const auto order_in_group = [&](int i) { return order[begin + i]; };
    const unsigned long long best = next_key(size, ~0ull, lane, order_in_group);
    float score = choice(begin + index_of(best));
    if (r.group_score == GroupScore::two_best)
      score += choice(begin + index_of(next_key(size, best, lane, order_in_group)));
    if (lane == 0) group_order[g] = order_of(score);
  }
  __syncwarp();
  const unsigned long long last = last_chosen(group_order, r.groups, r.top_groups, lane);
  for (int e = lane; e < r.experts; e += warp)
    if (key(group_order[e / size], e / size) < last) order[e] = excluded;
  __syncwarp();
}

// The chosen experts in ascending order and their s, or its sigmoid.
__device__ void choose(const Router& r, const float* logits, int lane, float* s, unsigned* order,
                       unsigned* group_order, std::int32_t* expert, float* weight) {
  write_scores(r, logits, lane, s);
  for (int e = lane; e < r.experts; e += warp)
    order[e] = order_of(r.correction == nullptr ? s[e] : s[e] + r.correction[e]);
  __syncwarp();
  if (r.groups > 1) keep_best_groups(r, s, lane, order, group_order);
  const unsigned long long last = last_chosen(order, r.experts, r.top_k, lane);
  int before = 0;  // chosen experts below `first`
  for (int first = 0; first < r.experts; first += warp) {
    const int e = first + lane;
    const bool chosen = e < r.experts && key(order[e], e) >= last;
    const unsigned lanes = __ballot_sync(all_lanes, chosen);
    if (chosen) {
      const int slot = before + __popc(lanes & ((1u << lane) - 1));
      expert[slot] = e;
      weight[slot] = r.scoring == Scoring::logits ? sigmoid(s[e]) : s[e];
    }
    before += __popc(lanes);
  }
}

__device__ void choose_by_sparse_mixer(const Router& r, const float* logits, int lane,
                                       std::int32_t* expert, float* weight) {
  const auto best_but = [&](int without) {
    return index_of(next_key(r.experts, ~0ull, lane,
                             [&](int e) { return e == without ? excluded : order_of(logits[e]); }));
  };
  const auto weight_of = [&](int chosen, int without) {
    const float most = logits[chosen];
    float part = 0.0f;
    for (int e = lane; e < r.experts; e += warp) {
      const float distance = (most - logits[e]) / fmaxf(fabsf(logits[e]), most);
      const bool far = distance > r.threshold;  // 0 / 0 is not
      part += e == without || far ? 0.0f : expf(logits[e] - most);
    }
    return 1.0f / sum(part);
  };
  const int first = best_but(-1);
  const int second = best_but(first);
  const float first_weight = weight_of(first, -1);
  const float second_weight = weight_of(second, first);
  if (lane == 0) {
    const int slot = first < second ? 0 : 1;
    expert[slot] = first;
    weight[slot] = first_weight;
    expert[1 - slot] = second;
    weight[1 - slot] = second_weight;
  }
}

__global__ __launch_bounds__(warp* warps_per_block) void route_kernel(Router r) {
  extern __shared__ float memory[];
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int warp_of_block = static_cast<int>(threadIdx.x) / warp;
  const std::int64_t t = std::int64_t{blockIdx.x} * warps_per_block + warp_of_block;
  if (t >= r.tokens) return;  // a whole warp; there are no barriers of the block
  float* s = memory + warp_of_block * r.shared_elements();
  auto* order = reinterpret_cast<unsigned*>(s + r.experts);
  unsigned* group_order = order + r.experts;
  auto* chosen_weight = reinterpret_cast<float*>(group_order + r.groups);
  const float* logits = r.logits + t * r.logits_stride;
  std::int32_t* expert = r.expert + t * r.expert_stride;

  if (r.scoring == Scoring::sparse_mixer)
    choose_by_sparse_mixer(r, logits, lane, expert, chosen_weight);
  else
    choose(r, logits, lane, s, order, group_order, expert, chosen_weight);
  __syncwarp();  // what one lane has chosen, others read, in global memory too

  float total = 0.0f;
  for (int slot = 0; slot < r.top_k; ++slot) total += chosen_weight[slot];
  for (int slot = lane; slot < r.top_k; slot += warp) {
    float w = chosen_weight[slot];
    if (r.normalize) w /= total + r.normalize_eps;
    w *= r.scaling;
    if (r.expert_scale != nullptr) w *= r.expert_scale[expert[slot]];
    r.weight[t * r.weight_stride + slot] = w;
  }
}

}  // namespace

void route(Matrix<const float> logits, Matrix<const float> correction,
           Matrix<const float> expert_scale, const RouteOptions& options,
           Matrix<std::int32_t> expert, Matrix<float> weight, Stream& stream) {
  require(logits.cols <= most_experts, "route: more than 1024 experts");
  if (logits.rows == 0) return;
  Router r{};
  r.logits = logits.data;
  r.logits_stride = logits.stride;
  r.correction = correction.data;
  r.expert_scale = expert_scale.data;
  r.expert = expert.data;
  r.expert_stride = expert.stride;
  r.weight = weight.data;
  r.weight_stride = weight.stride;
  r.tokens = logits.rows;
  r.experts = static_cast<int>(logits.cols);
  r.top_k = static_cast<int>(options.top_k);
  r.scoring = options.scoring;
  r.normalize = options.normalize;
  r.normalize_eps = options.normalize_eps;
  r.scaling = options.scaling;
  r.groups = static_cast<int>(options.groups);
  r.top_groups = static_cast<int>(options.top_groups);
  r.group_score = options.group_score;
  r.threshold = options.threshold;
  // At most 2 · 4 · 1024 elements: 32 KiB, which every block may have.
  const std::size_t shared_bytes =
      static_cast<std::size_t>(warps_per_block * r.shared_elements()) * sizeof(float);
  const auto blocks = static_cast<unsigned>((r.tokens + warps_per_block - 1) / warps_per_block);
  route_kernel<<<blocks, warp * warps_per_block, shared_bytes, stream.cuda().stream>>>(r);
  check_launch();
}

}  // namespace qpipe::cuda
