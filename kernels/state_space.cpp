#include "kernels/state_space.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/simd.h"
#include "kernels/softplus.h"

namespace qpipe {

namespace {

constexpr std::int64_t widest_state = 256;

// s ← decay · s + input · b; the sum of s · c.
QPIPE_SIMD_CLONES float advance_row(float decay, float input, const float* b, const float* c,
                                    std::int64_t state, float* s) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t n = 0; n < state; ++n) {
    s[n] = decay * s[n] + input * b[n];
    sum += s[n] * c[n];
  }
  return sum;
}

}  // namespace

void state_space(ConstTensor xbc, ConstTensor dt, const StateSpaceLayout& layout,
                 const StateSpaceParameters& parameters, std::int64_t seqlen, Tensor y,
                 Stream& stream) {
  const DType type = stream.compute_dtype();
  require(xbc.dtype == type && dt.dtype == type && y.dtype == type,
          "state_space: xbc, dt and y must have the compute type");
  require(layout.heads > 0 && layout.head_dim > 0 && layout.groups > 0 && layout.state > 0 &&
              layout.heads % layout.groups == 0,
          "state_space: groups must divide the heads");
  require(layout.state <= widest_state, "state_space: a state wider than 256 is not computed");
  require(xbc.cols == layout.width() && y.cols == layout.inner() && dt.cols == layout.heads,
          "state_space: xbc must be [tokens, x B C], dt [tokens, heads], y [tokens, x]");
  require(y.rows == xbc.rows && dt.rows == xbc.rows && seqlen > 0 && xbc.rows % seqlen == 0,
          "state_space: tokens must be whole sequences");
  const auto one_a_head = [&](Matrix<const float> m) {
    return m.rows == 1 && m.cols == layout.heads;
  };
  require(
      one_a_head(parameters.a_log) && one_a_head(parameters.dt_bias) && one_a_head(parameters.d),
      "state_space: a_log, dt_bias and d must be [1, heads]");
  require(parameters.shortest <= parameters.longest,
          "state_space: the shortest time step must not be above the longest");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::state_space(xbc, dt, layout, parameters, seqlen, y, stream);
  const auto in = xbc.as<const float>();
  const auto steps = dt.as<const float>();
  const auto out = y.as<float>();
  const std::int64_t pairs = in.rows / seqlen * layout.heads;  // (sequence, head)
#pragma omp parallel for schedule(static)
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    const std::int64_t head = pair % layout.heads;
    const std::int64_t group = head / (layout.heads / layout.groups);
    const std::int64_t first = pair / layout.heads * seqlen;
    const float a = -std::exp(parameters.a_log(0, head));
    const float d = parameters.d(0, head);
    std::vector<float> s(static_cast<std::size_t>(layout.head_dim * layout.state), 0.0f);
    for (std::int64_t t = first; t < first + seqlen; ++t) {
      const float step = std::clamp(softplus(steps(t, head) + parameters.dt_bias(0, head)),
                                    parameters.shortest, parameters.longest);
      const float decay = std::exp(step * a);
      const float* x = in.row(t) + head * layout.head_dim;
      const float* b = in.row(t) + layout.b_begin() + group * layout.state;
      const float* c = in.row(t) + layout.c_begin() + group * layout.state;
      for (std::int64_t p = 0; p < layout.head_dim; ++p)
        out(t, head * layout.head_dim + p) =
            advance_row(decay, step * x[p], b, c, layout.state, s.data() + p * layout.state) +
            d * x[p];
    }
  }
}

}  // namespace qpipe
