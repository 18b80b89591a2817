#include "kernels/delta_rule.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/recurrent.h"

namespace qpipe {

namespace {

using reference::DeltaCase;

class DeltaRuleTest : public ForwardTest {
 protected:
  // Decays from almost 1 to almost 0, strengths from 0 to 1.
  DeltaCase random_case(const DeltaHeads& heads, std::int64_t samples, std::int64_t seqlen,
                        float decay = 1.0f) const {
    const std::int64_t tokens = samples * seqlen;
    DeltaCase c{heads, samples, seqlen, {}, {}, {}, {}, {}};
    c.q = round_to_compute(random_normal(tokens * heads.keys(), 1));
    c.k = round_to_compute(random_normal(tokens * heads.keys(), 2));
    c.v = round_to_compute(random_normal(tokens * heads.values(), 3));
    for (const float x : random_normal(tokens * heads.decays(), 4, 2.0f))
      c.g.push_back(-decay * std::log1p(std::exp(x - 2.0f)));
    for (const float x : random_normal(tokens * heads.value_heads, 5, 2.0f))
      c.beta.push_back(1.0f / (1.0f + std::exp(-x)));
    return c;
  }

  std::vector<float> run(const DeltaCase& c, std::int64_t scratch_elements) {
    const std::int64_t tokens = c.samples * c.seqlen;
    const DType type = stream.compute_dtype();
    const auto q = upload_padded(type, c.q, tokens, c.heads.keys(), 8, 8);
    const auto k = upload_padded(type, c.k, tokens, c.heads.keys(), 8, 8);
    const auto v = upload_padded(type, c.v, tokens, c.heads.values(), 8, 16);
    const auto out = poisoned_padded(type, tokens, c.heads.values(), 16, 8);
    const TensorArray scratch(type, 1, scratch_elements, stream);
    delta_rule(q.view, k.view, v.view, upload_as<float>(c.g, tokens, c.heads.decays()),
               upload_as<float>(c.beta, tokens, c.heads.value_heads), c.heads, c.seqlen, out.view,
               scratch, stream);
    return download_inside(out);
  }
  std::vector<float> run(const DeltaCase& c) {
    return run(c, delta_rule_scratch(c.heads) * c.samples * ((c.seqlen + 63) / 64 * 64));
  }

  // Twice what the plain recurrence errs at most where it computes in the compute type, float32
  // sums over a key, whose errors grow like the root of its width, and the last rounding.
  std::vector<double> tolerance(const DeltaCase& c, const reference::Exact& want) const {
    const bool narrow = stream.on_cuda();
    const auto plain = reference::delta_rule(c, [&](double x) {
      const auto single_precision = static_cast<float>(x);
      return static_cast<double>(narrow ? to_float(to_bf16(single_precision)) : single_precision);
    });
    double largest = 0.0;
    double scale = 0.0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      largest = std::max(largest, std::abs(plain[i] - want[i]));
      scale = std::max(scale, std::abs(want[i]));
    }
    const double sums = (8.0 + 2.0 * std::sqrt(static_cast<double>(c.heads.key_dim))) * single;
    std::vector<double> result;
    for (const double value : want)
      result.push_back(2.0 * largest + sums * scale + epsilon() * std::abs(value));
    return result;
  }

  void expect_reference(const DeltaCase& c) {
    const auto want = reference::delta_rule(c, [](double x) { return x; });
    expect_close(run(c), want, tolerance(c, want));
  }
};

TEST_P(DeltaRuleTest, MatchesTheReference) {
  struct Case {
    std::int64_t key_heads, value_heads, key_dim, value_dim, samples, seqlen;
  };
  for (const auto& [key_heads, value_heads, key_dim, value_dim, samples, seqlen] :
       {Case{1, 1, 8, 8, 1, 1}, Case{2, 4, 16, 8, 2, 40}, Case{1, 3, 64, 40, 2, 64},
        Case{2, 2, 72, 32, 1, 65}, Case{1, 2, 128, 128, 1, 200}, Case{3, 3, 128, 24, 3, 63},
        Case{1, 1, 256, 64, 1, 130}, Case{4, 12, 24, 16, 2, 17}})
    for (const bool channel_decay : {false, true}) {
      SCOPED_TRACE(testing::Message() << samples << " sequences of " << seqlen << ", " << key_heads
                                      << " heads of " << key_dim << " for " << value_heads << " of "
                                      << value_dim << (channel_decay ? ", a decay a channel" : ""));
      expect_reference(random_case({key_heads, value_heads, key_dim, value_dim, channel_decay},
                                   samples, seqlen));
    }
}

// Almost nothing fades, or all of it at once: the ends of what checkpoints have.
TEST_P(DeltaRuleTest, SlowAndFastDecays) {
  for (const float decay : {0.0f, 1e-3f, 30.0f, 300.0f})
    for (const bool channel_decay : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << "decay " << decay << (channel_decay ? ", a decay a channel" : ""));
      expect_reference(random_case({1, 2, 32, 16, channel_decay}, 1, 150, decay));
    }
}

// Orthogonal keys of full strength without decay: every value is kept as it is, and a query of one
// key reads it, however many tokens lie between.
TEST_P(DeltaRuleTest, RemembersValuesOfOrthogonalKeys) {
  constexpr std::int64_t keys = 64;
  const DeltaHeads heads{1, 1, keys, 8, false};
  DeltaCase c{heads, 1, 3 * keys, {}, {}, {}, {}, {}};
  c.v = round_to_compute(random_normal(3 * keys * 8, 1));
  for (std::int64_t t = 0; t < 3 * keys; ++t)
    for (std::int64_t i = 0; i < keys; ++i) {
      c.k.push_back(i == t % keys ? 2.0f : 0.0f);
      c.q.push_back(i == t * 7 % keys ? 3.0f : 0.0f);
    }
  c.g.assign(3 * keys, 0.0f);
  c.beta.assign(3 * keys, 1.0f);
  std::vector<double> want;
  std::vector<double> tolerance;
  for (std::int64_t t = 0; t < 3 * keys; ++t) {
    std::int64_t written = t;  // the last token with the key that is asked for
    while (written >= 0 && written % keys != t * 7 % keys) --written;
    for (std::int64_t j = 0; j < 8; ++j) {
      want.push_back(written < 0 ? 0.0 : c.v[static_cast<std::size_t>(written * 8 + j)] / 8.0);
      tolerance.push_back(4.0 * epsilon() * std::abs(want.back()) + 1e-6);  // the norm's 1e-6
    }
  }
  expect_close(run(c), want, tolerance);
}

// A key that comes again with full strength takes the place of what was there: attention would add.
TEST_P(DeltaRuleTest, OverwritesWhatAKeyHeld) {
  const DeltaHeads heads{1, 1, 8, 8, false};
  DeltaCase c{heads, 1, 130, {}, {}, {}, {}, {}};
  for (std::int64_t t = 0; t < 130; ++t)
    for (std::int64_t i = 0; i < 8; ++i) {
      c.k.push_back(i == 0 ? 1.0f : 0.0f);
      c.q.push_back(i == 0 ? 1.0f : 0.0f);
      c.v.push_back(static_cast<float>(t % 16));
    }
  c.g.assign(130, 0.0f);
  c.beta.assign(130, 1.0f);
  std::vector<double> want;
  std::vector<double> tolerance;
  for (std::int64_t t = 0; t < 130; ++t)
    for (std::int64_t i = 0; i < 8; ++i) {
      want.push_back(static_cast<double>(t % 16) / std::sqrt(8.0));
      tolerance.push_back((2.0 * epsilon() + 2e-6) * 16.0);  // the norm's 1e-6
    }
  expect_close(run(c), want, tolerance);
}

// Neither the sequences beside it nor the scratch memory change a bit of a sequence's result.
TEST_P(DeltaRuleTest, DependsOnTheSequenceAlone) {
  for (const bool channel_decay : {false, true}) {
    const DeltaHeads heads{2, 4, 64, 40, channel_decay};
    constexpr std::int64_t seqlen = 90;
    const DeltaCase all = random_case(heads, 3, seqlen);
    const auto together = run(all);
    for (const std::int64_t scratch : {std::int64_t{1}, 7 * 64 * delta_rule_scratch(heads) / 4})
      EXPECT_EQ(count_different(run(all, scratch), together), 0u) << "scratch " << scratch;
    DeltaCase one = all;
    one.samples = 1;
    const auto second = [&](std::vector<float> values) {
      const auto size = static_cast<std::ptrdiff_t>(values.size() / 3);
      return std::vector<float>(values.begin() + size, values.begin() + 2 * size);
    };
    one.q = second(all.q);
    one.k = second(all.k);
    one.v = second(all.v);
    one.g = second(all.g);
    one.beta = second(all.beta);
    EXPECT_EQ(count_different(run(one), second(together)), 0u);
  }
}

TEST_P(DeltaRuleTest, AcceptsNoTokens) {
  const DeltaHeads heads{1, 1, 8, 8, false};
  const TensorArray x(stream.compute_dtype(), 0, 8, stream),
      out(stream.compute_dtype(), 0, 8, stream);
  const Array<float> g(0, 1, stream);
  EXPECT_NO_THROW(delta_rule(x, x, x, g, g, heads, 5, out, {}, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(DeltaRuleTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray q(type, 4, 16, stream), k(type, 4, 16, stream), v(type, 4, 32, stream),
      out(type, 4, 32, stream), tall(type, 5, 32, stream), half(DType::f16, 4, 32, stream),
      narrow(type, 4, 8, stream);
  const Array<float> g(4, 4, stream), channels(4, 32, stream), beta(4, 4, stream);
  const DeltaHeads heads{2, 4, 8, 8, false};
  const auto rule = [&](ConstTensor queries, ConstTensor values, Matrix<const float> decays,
                        Matrix<const float> strengths, DeltaHeads h, std::int64_t seqlen,
                        Tensor to) {
    delta_rule(queries, k, values, decays, strengths, h, seqlen, to, {}, stream);
  };
  DeltaHeads uneven = heads;
  uneven.key_heads = 3;
  EXPECT_THROW(rule(q, v, g, beta, uneven, 2, out), std::invalid_argument);
  EXPECT_THROW(rule(q, v, g, beta, {}, 2, out), std::invalid_argument);
  EXPECT_THROW(rule(narrow, v, g, beta, heads, 2, out), std::invalid_argument);
  EXPECT_THROW(rule(q, half, g, beta, heads, 2, out), std::invalid_argument);
  EXPECT_THROW(rule(q, v, channels, beta, heads, 2, out), std::invalid_argument);
  EXPECT_THROW(rule(q, v, g, channels, heads, 2, out), std::invalid_argument);
  EXPECT_THROW(rule(q, v, g, beta, heads, 3, out), std::invalid_argument);
  EXPECT_THROW(rule(q, v, g, beta, heads, 0, out), std::invalid_argument);
  EXPECT_THROW(rule(q, v, g, beta, heads, 2, tall), std::invalid_argument);
  for (const TensorArray* x : {&q, &k, &v}) fill_zero(x->view.data, x->memory.bytes(), stream);
  fill_zero(g.view.data, g.memory.bytes(), stream);
  fill_zero(beta.view.data, beta.memory.bytes(), stream);
  EXPECT_NO_THROW(rule(q, v, g, beta, heads, 2, out));
}

INSTANTIATE_TEST_SUITE_P(Backends, DeltaRuleTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
