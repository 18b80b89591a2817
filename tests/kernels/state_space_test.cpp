#include "kernels/state_space.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/state_space.h"

namespace qpipe {

namespace {

using reference::StateSpaceCase;

class StateSpaceTest : public ForwardTest {
 protected:
  // A term of a sum is multiplied by up to seqlen decays, each wrong by a few roundings. CUDA
  // rounds x, the scores and the state to bfloat16 in front of its products.
  std::vector<double> tolerance_of(const reference::ScanResult& want, const StateSpaceCase& c) {
    std::vector<double> tolerance;
    const double roundings =
        static_cast<double>(8 * std::min<std::int64_t>(c.seqlen, 256) + c.layout.state + 32);
    for (std::size_t i = 0; i < want.out.size(); ++i)
      tolerance.push_back((roundings * single + (stream.on_cuda() ? 4 * 0x1p-8 : 0.0)) *
                              want.magnitude[i] +
                          epsilon() * std::abs(want.out[i]));
    return tolerance;
  }

  StateSpaceParameters upload_parameters(const StateSpaceCase& c, std::vector<Array<float>>& kept) {
    StateSpaceParameters parameters;
    const auto place = [&](const std::vector<float>& values) {
      kept.push_back(upload_as(values, 1, c.layout.heads));
      return Matrix<const float>(kept.back().view);
    };
    parameters.a_log = place(c.a_log);
    parameters.dt_bias = place(c.dt_bias);
    parameters.d = place(c.d);
    parameters.shortest = static_cast<float>(c.shortest);
    parameters.longest = static_cast<float>(c.longest);
    return parameters;
  }

  // padding: columns beside each matrix; not a multiple of 8: nothing is aligned.
  std::vector<float> run(const std::vector<float>& xbc, const std::vector<float>& dt,
                         const StateSpaceCase& c, std::int64_t padding = 3) {
    const DType type = stream.compute_dtype();
    const std::int64_t tokens = c.sequences * c.seqlen;
    std::vector<Array<float>> kept;
    const StateSpaceParameters parameters = upload_parameters(c, kept);
    const auto in = upload_padded(type, xbc, tokens, c.layout.width(), padding, padding);
    const auto steps = upload_padded(type, dt, tokens, c.layout.heads, padding, padding);
    const auto y = poisoned_padded(type, tokens, c.layout.inner(), padding, padding);
    state_space(in.view, steps.view, c.layout, parameters, c.seqlen, y.view, stream);
    return download_inside(y);
  }
};

StateSpaceCase random_case(const StateSpaceLayout& layout, std::int64_t sequences,
                           std::int64_t seqlen, unsigned seed) {
  StateSpaceCase c;
  c.layout = layout;
  c.sequences = sequences;
  c.seqlen = seqlen;
  c.a_log = random_normal(layout.heads, seed);
  c.dt_bias = random_normal(layout.heads, seed + 1);
  c.d = random_normal(layout.heads, seed + 2);
  return c;
}

TEST_P(StateSpaceTest, MatchesTheReference) {
  const std::vector<StateSpaceLayout> layouts{
      {1, 1, 1, 1},  {4, 32, 2, 16},  {6, 16, 3, 5},    {2, 64, 1, 128},
      {3, 7, 1, 33}, {2, 80, 2, 200}, {1, 128, 1, 256}, {4, 8, 4, 64},
  };
  for (const StateSpaceLayout& layout : layouts)
    for (const std::int64_t seqlen : {1, 5, 64, 131})
      for (const std::int64_t padding : {3, 8}) {
        SCOPED_TRACE(testing::Message() << layout.heads << " heads of " << layout.head_dim
                                        << ", state " << layout.state << ", seqlen " << seqlen);
        const StateSpaceCase c = random_case(layout, 2, seqlen, 1);
        const auto xbc = round_to_compute(random_normal(2 * seqlen * layout.width(), 4));
        const auto dt = round_to_compute(random_normal(2 * seqlen * layout.heads, 5));
        const auto want = reference::state_space(xbc, dt, c);
        expect_close(run(xbc, dt, c, padding), want.out, tolerance_of(want, c));
      }
}

TEST_P(StateSpaceTest, KeepsTimeStepsWithinTheLimits) {
  StateSpaceCase c = random_case({4, 16, 2, 16}, 1, 70, 1);
  c.shortest = 0.25;
  c.longest = 0.75;
  const auto xbc = round_to_compute(random_normal(70 * c.layout.width(), 2));
  const auto dt = round_to_compute(random_normal(70 * 4, 3, 2.0f));
  const auto want = reference::state_space(xbc, dt, c);
  expect_close(run(xbc, dt, c), want.out, tolerance_of(want, c));
}

// A = 0, Δ = 1 and all ones: y counts the tokens so far, once for each element of the state.
TEST_P(StateSpaceTest, WithoutDecayItCounts) {
  StateSpaceCase c = random_case({2, 3, 1, 2}, 2, 100, 1);
  c.a_log.assign(2, -std::numeric_limits<float>::infinity());
  c.d.assign(2, 0.0f);
  c.shortest = c.longest = 1.0;
  const auto tokens = static_cast<std::size_t>(200);
  const std::vector<float> ones(tokens * static_cast<std::size_t>(c.layout.width()), 1.0f);
  const auto y = run(ones, std::vector<float>(tokens * 2, 0.0f), c);
  for (std::size_t i = 0; i < y.size(); ++i) {
    const auto token = i / static_cast<std::size_t>(c.layout.inner());
    EXPECT_EQ(y[i], static_cast<float>(2 * (token % 100 + 1))) << "token " << token;
  }
}

// A = −∞: nothing is kept; y = Δ (B · C) x + D x of the token alone.
TEST_P(StateSpaceTest, WithEndlessDecayItForgets) {
  StateSpaceCase c = random_case({1, 1, 1, 1}, 1, 80, 1);
  c.a_log = {20.0f};
  c.d = {2.0f};
  c.shortest = c.longest = 1.0;
  std::vector<float> xbc;
  std::vector<float> want;
  for (int t = 0; t < 80; ++t) {
    const auto x = static_cast<float>(t % 7 - 3);
    xbc.insert(xbc.end(), {x, 2.0f, 0.5f});
    want.push_back(3.0f * x);
  }
  EXPECT_EQ(count_different(run(xbc, std::vector<float>(80, 0.0f), c), want), 0u);
}

TEST_P(StateSpaceTest, ASequenceDependsOnItselfAlone) {
  const StateSpaceLayout layout{4, 64, 2, 128};
  const auto xbc = round_to_compute(random_normal(3 * 100 * layout.width(), 1));
  const auto dt = round_to_compute(random_normal(3 * 100 * 4, 2));
  StateSpaceCase c = random_case(layout, 3, 100, 3);
  const auto together = run(xbc, dt, c);
  c.sequences = 1;
  const auto width = static_cast<std::size_t>(100 * layout.width());
  const std::vector<float> second(xbc.begin() + static_cast<std::ptrdiff_t>(width),
                                  xbc.begin() + static_cast<std::ptrdiff_t>(2 * width));
  const auto alone = run(second, {dt.begin() + 400, dt.begin() + 800}, c, 8);
  const auto inner = static_cast<std::ptrdiff_t>(100 * layout.inner());
  const std::vector<float> expected(together.begin() + inner, together.begin() + 2 * inner);
  EXPECT_EQ(count_different(alone, expected), 0u);
}

TEST_P(StateSpaceTest, AcceptsNoTokens) {
  const StateSpaceCase c = random_case({2, 8, 1, 4}, 0, 5, 1);
  EXPECT_TRUE(run({}, {}, c).empty());
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(StateSpaceTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const StateSpaceLayout layout{4, 8, 2, 4};
  std::vector<Array<float>> kept;
  const StateSpaceParameters parameters = upload_parameters(random_case(layout, 1, 6, 1), kept);
  const TensorArray xbc(type, 6, layout.width(), stream), dt(type, 6, 4, stream),
      y(type, 6, layout.inner(), stream), narrow(type, 6, 3, stream), tall(type, 7, 4, stream),
      half(DType::f16, 6, layout.inner(), stream);
  const auto call = [&](ConstTensor in, ConstTensor steps, const StateSpaceLayout& l,
                        const StateSpaceParameters& p, std::int64_t seqlen,
                        Tensor out) { state_space(in, steps, l, p, seqlen, out, stream); };
  EXPECT_NO_THROW(call(xbc, dt, layout, parameters, 3, y));
  EXPECT_THROW(call(xbc, dt, layout, parameters, 4, y), std::invalid_argument);
  EXPECT_THROW(call(xbc, dt, layout, parameters, 0, y), std::invalid_argument);
  EXPECT_THROW(call(narrow, dt, layout, parameters, 3, y), std::invalid_argument);
  EXPECT_THROW(call(xbc, narrow, layout, parameters, 3, y), std::invalid_argument);
  EXPECT_THROW(call(xbc, tall, layout, parameters, 3, y), std::invalid_argument);
  EXPECT_THROW(call(xbc, dt, layout, parameters, 3, narrow), std::invalid_argument);
  EXPECT_THROW(call(xbc, dt, layout, parameters, 3, half), std::invalid_argument);
  EXPECT_THROW(call(xbc, dt, {4, 8, 3, 4}, parameters, 3, y), std::invalid_argument);
  EXPECT_THROW(call(xbc, dt, {4, 8, 2, 5}, parameters, 3, y), std::invalid_argument);
  StateSpaceParameters wrong = parameters;
  wrong.d = parameters.d.col_range(0, 3);
  EXPECT_THROW(call(xbc, dt, layout, wrong, 3, y), std::invalid_argument);
  wrong = parameters;
  wrong.shortest = 2.0f;
  wrong.longest = 1.0f;
  EXPECT_THROW(call(xbc, dt, layout, wrong, 3, y), std::invalid_argument);
  const StateSpaceLayout wide{4, 8, 2, 257};
  const TensorArray wide_xbc(type, 6, wide.width(), stream);
  EXPECT_THROW(call(wide_xbc, dt, wide, parameters, 3, y), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, StateSpaceTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
