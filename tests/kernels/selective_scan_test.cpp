#include "kernels/selective_scan.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/state_space.h"

namespace qpipe {

namespace {

using reference::SelectiveScanCase;

struct Inputs {
  std::vector<float> x, dt, b, c, z;
};

class SelectiveScanTest : public ForwardTest {
 protected:
  Inputs random_inputs(const SelectiveScanCase& s, bool wide_steps = false) {
    const std::int64_t tokens = s.sequences * s.seqlen;
    const auto dt = random_normal(tokens * s.channels, 2);
    return {round_to_compute(random_normal(tokens * s.channels, 1)),
            wide_steps ? dt : round_to_compute(dt),
            round_to_compute(random_normal(tokens * s.state, 3)),
            round_to_compute(random_normal(tokens * s.state, 4)),
            round_to_compute(random_normal(tokens * s.channels, 5))};
  }

  // A term of a sum is multiplied by up to seqlen decays, each wrong by a few roundings.
  std::vector<double> tolerance_of(const reference::ScanResult& want, const SelectiveScanCase& s) {
    std::vector<double> tolerance;
    const auto roundings = static_cast<double>(8 * s.seqlen + s.state + 32);
    for (std::size_t i = 0; i < want.out.size(); ++i)
      tolerance.push_back(roundings * single * want.magnitude[i] +
                          epsilon() * std::abs(want.out[i]));
    return tolerance;
  }

  std::vector<float> run(const Inputs& in, const SelectiveScanCase& s, bool wide_steps = false,
                         std::int64_t padding = 3) {
    const DType type = stream.compute_dtype();
    const std::int64_t tokens = s.sequences * s.seqlen;
    const auto place = [&](const std::vector<float>& values, std::int64_t cols, DType dtype) {
      return upload_padded(dtype, values, tokens, cols, padding, padding);
    };
    const auto x = place(in.x, s.channels, type);
    const auto dt = place(in.dt, s.channels, wide_steps ? DType::f32 : type);
    const auto b = place(in.b, s.state, type);
    const auto c = place(in.c, s.state, type);
    const auto z = place(in.z, s.channels, type);
    const auto a_log = upload_as(s.a_log, s.channels, s.state);
    const auto d = upload_as(s.d, 1, s.channels);
    const auto y = poisoned_padded(type, tokens, s.channels, padding, padding);
    selective_scan(x.view, dt.view, b.view, c.view, z.view, a_log, d, s.seqlen, y.view, stream);
    const auto apart = download_inside(y);
    selective_scan(x.view, dt.view, b.view, c.view, z.view, a_log, d, s.seqlen, z.view, stream);
    EXPECT_EQ(count_different(download_inside(z), apart), 0u) << "in the gate's place";
    return apart;
  }
};

SelectiveScanCase random_case(std::int64_t channels, std::int64_t state, std::int64_t sequences,
                              std::int64_t seqlen) {
  SelectiveScanCase s;
  s.channels = channels;
  s.state = state;
  s.sequences = sequences;
  s.seqlen = seqlen;
  s.a_log = random_normal(channels * state, 6);
  s.d = random_normal(channels, 7);
  return s;
}

TEST_P(SelectiveScanTest, MatchesTheReference) {
  for (const std::int64_t channels : {1, 96, 131})
    for (const std::int64_t state : {1, 7, 8, 16, 33, 64})
      for (const std::int64_t seqlen : {1, 40, 67})
        for (const bool wide_steps : {false, true}) {
          SCOPED_TRACE(testing::Message() << channels << " channels, state " << state << ", seqlen "
                                          << seqlen << (wide_steps ? ", dt in float32" : ""));
          const SelectiveScanCase s = random_case(channels, state, 2, seqlen);
          const Inputs in = random_inputs(s, wide_steps);
          const auto want = reference::selective_scan(in.x, in.dt, in.b, in.c, in.z, s);
          expect_close(run(in, s, wide_steps), want.out, tolerance_of(want, s));
        }
}

// A = 0 and B = C = 1: s sums Δ x of the tokens so far, Δ = 64 + ln(1 + e^−64) = 64.
TEST_P(SelectiveScanTest, WithoutDecayItSums) {
  SelectiveScanCase s = random_case(3, 2, 2, 50);
  s.a_log.assign(6, -std::numeric_limits<float>::infinity());
  s.d.assign(3, 0.0f);
  const std::vector<float> ones(300, 1.0f);
  // silu(128) = 128 in both types.
  const Inputs in{ones, std::vector<float>(300, 64.0f), std::vector<float>(200, 1.0f),
                  std::vector<float>(200, 1.0f), std::vector<float>(300, 128.0f)};
  const auto y = run(in, s);
  for (std::size_t i = 0; i < y.size(); ++i)
    EXPECT_EQ(y[i], static_cast<float>(2 * 64 * 128 * (i / 3 % 50 + 1))) << i;
}

TEST_P(SelectiveScanTest, ASequenceDependsOnItselfAlone) {
  SelectiveScanCase s = random_case(40, 16, 3, 37);
  const Inputs in = random_inputs(s);
  const auto together = run(in, s);
  s.sequences = 1;
  const auto second = [&](const std::vector<float>& values) {
    const auto third = static_cast<std::ptrdiff_t>(values.size() / 3);
    return std::vector<float>(values.begin() + third, values.begin() + 2 * third);
  };
  const Inputs middle{second(in.x), second(in.dt), second(in.b), second(in.c), second(in.z)};
  EXPECT_EQ(count_different(run(middle, s, false, 8), second(together)), 0u);
}

TEST_P(SelectiveScanTest, AcceptsNoTokens) {
  EXPECT_TRUE(run({}, random_case(8, 4, 0, 5)).empty());
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(SelectiveScanTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 6, 8, stream), b(type, 6, 4, stream), narrow(type, 6, 3, stream),
      wide(type, 6, 65, stream), half(DType::f16, 6, 8, stream);
  const Array<float> a_log(8, 4, stream), wide_a_log(8, 65, stream), gaps(8, 5, stream),
      d(1, 8, stream);
  const auto call = [&](ConstTensor x_, ConstTensor dt, ConstTensor b_, ConstTensor c,
                        Matrix<const float> a, Matrix<const float> d_, std::int64_t seqlen,
                        Tensor y) { selective_scan(x_, dt, b_, c, x, a, d_, seqlen, y, stream); };
  EXPECT_NO_THROW(call(x, x, b, b, a_log, d, 3, x));
  EXPECT_THROW(call(x, x, b, b, a_log, d, 4, x), std::invalid_argument);
  EXPECT_THROW(call(x, narrow, b, b, a_log, d, 3, x), std::invalid_argument);
  EXPECT_THROW(call(x, half, b, b, a_log, d, 3, x), std::invalid_argument);
  EXPECT_THROW(call(x, x, narrow, b, a_log, d, 3, x), std::invalid_argument);
  EXPECT_THROW(call(x, x, b, narrow, a_log, d, 3, x), std::invalid_argument);
  EXPECT_THROW(call(x, x, b, b, a_log, a_log, 3, x), std::invalid_argument);
  EXPECT_THROW(call(x, x, b, b, gaps, d, 3, x), std::invalid_argument);
  EXPECT_THROW(call(x, x, b, b, gaps.view.col_range(0, 4), d, 3, x), std::invalid_argument);
  EXPECT_THROW(call(x, x, b, b, a_log, d, 3, narrow), std::invalid_argument);
  EXPECT_THROW(call(x, x, wide, wide, wide_a_log, d, 3, x), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, SelectiveScanTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
