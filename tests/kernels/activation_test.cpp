#include "kernels/activation.h"

#include "tests/kernels/forward_checks.h"
#include "tests/reference/forward.h"

namespace qpipe {

namespace {

class ActivationTest : public ForwardTest {
 protected:
  static constexpr Activation all[] = {Activation::silu, Activation::gelu,  Activation::gelu_tanh,
                                       Activation::relu, Activation::relu2, Activation::quick_gelu};
  const std::vector<std::int64_t> widths{1, 7, 8, 64, 257, 1536, 4099};

  // Normal values with a few far out, where exp overflows or f(x) vanishes.
  static std::vector<float> inputs(std::int64_t count, unsigned seed) {
    auto x = random_normal(count, seed, 2.5f);
    const float far[] = {0.0f,  -0.0f, 100.0f, -100.0f, -87.0f, -13.0f,
                         13.0f, 1e-6f, -1e-6f, 3e4f,    -3e4f,  -5.5f};
    for (std::size_t i = 0; i < std::min(x.size(), std::size(far)); ++i)
      x[x.size() - 1 - i] = far[i];
    return x;
  }

  // Around f(x): 8 roundings, and those of the exponent (2 |x| of them for silu, 1.702 times as
  // many for quick_gelu). 1 + tanh and 1 + erf cancel for x < 0, which costs 2^-23 |x| in absolute
  // terms; the cube in gelu_tanh makes its argument's error larger, but there f is close to 0 or x.
  static double error(Activation f, double x) {
    const double value = std::abs(reference::activation(f, x));
    switch (f) {
      case Activation::silu: return single * (8.0 + 2.0 * std::abs(x)) * value + 1e-37;
      case Activation::gelu:
      case Activation::gelu_tanh: return single * (8.0 * value + 4.0 * std::abs(x));
      case Activation::relu: return 0.0;
      case Activation::relu2: return single * value;
      case Activation::quick_gelu:
        return single * (8.0 + 2.0 * 1.702 * std::abs(x)) * value + 1e-37;
    }
    return 0.0;
  }
};

TEST_P(ActivationTest, PlainMatchesTheReference) {
  for (const Activation f : all)
    for (const std::int64_t ffn : widths) {
      SCOPED_TRACE(testing::Message() << "activation " << static_cast<int>(f) << ", ffn " << ffn);
      constexpr std::int64_t tokens = 5;
      const auto x = round_to_compute(inputs(tokens * ffn, 1));
      std::vector<double> want;
      std::vector<double> tolerance;
      for (const float value : x) {
        want.push_back(reference::activation(f, value));
        tolerance.push_back(error(f, value) +
                            (f == Activation::relu ? 0.0 : epsilon() * std::abs(want.back())));
      }
      const auto x_device = upload_padded(stream.compute_dtype(), x, tokens, ffn);
      const auto y = poisoned_padded(stream.compute_dtype(), tokens, ffn, 1, 4);
      activation(x_device.view, f, y.view, stream);
      const auto apart = download_inside(y);
      expect_close(apart, want, tolerance);
      activation(x_device.view, f, x_device.view, stream);
      EXPECT_EQ(count_different(download_inside(x_device), apart), 0u) << "in place";
    }
}

TEST_P(ActivationTest, GatedMatchesTheReference) {
  for (const Activation f : all)
    for (const std::int64_t ffn : widths) {
      SCOPED_TRACE(testing::Message() << "activation " << static_cast<int>(f) << ", ffn " << ffn);
      constexpr std::int64_t tokens = 5;
      const auto gate = round_to_compute(inputs(tokens * ffn, 1));
      const auto up = round_to_compute(random_normal(tokens * ffn, 2, 3.0f));
      std::vector<float> gate_up;
      std::vector<double> want;
      std::vector<double> tolerance;
      for (std::int64_t t = 0; t < tokens; ++t) {
        gate_up.insert(gate_up.end(), gate.begin() + t * ffn, gate.begin() + (t + 1) * ffn);
        gate_up.insert(gate_up.end(), up.begin() + t * ffn, up.begin() + (t + 1) * ffn);
      }
      for (std::size_t i = 0; i < gate.size(); ++i) {
        want.push_back(reference::activation(f, gate[i]) * up[i]);
        tolerance.push_back(error(f, gate[i]) * std::abs(up[i]) +
                            (epsilon() + 2.0 * single) * std::abs(want.back()));
      }
      const auto gate_up_device = upload_padded(stream.compute_dtype(), gate_up, tokens, 2 * ffn);
      const auto y = poisoned_padded(stream.compute_dtype(), tokens, ffn, 1, 4);
      gated_activation(gate_up_device.view, f, {}, y.view, stream);
      expect_close(download_inside(y), want, tolerance);
    }
}

// Limits that many values reach, before f (gpt-oss, DeepSeek-V4) and after it (Step-3.5).
TEST_P(ActivationTest, LimitsMatchTheReference) {
  const GatedLimits limits[] = {{1.5f, false, 1.0f}, {7.0f, false, 0.0f}, {1.5f, true, 0.0f},
                                {7.0f, true, 1.0f},  {0.0f, false, 1.0f}, {0.0f, true, -0.5f}};
  for (const Activation f : all)
    for (const GatedLimits& l : limits)
      for (const std::int64_t ffn : {7, 64, 257}) {
        SCOPED_TRACE(testing::Message()
                     << "activation " << static_cast<int>(f) << ", limit " << l.limit
                     << (l.after ? " after, offset " : " before, offset ") << l.up_offset
                     << ", ffn " << ffn);
        constexpr std::int64_t tokens = 5;
        const auto gate = round_to_compute(inputs(tokens * ffn, 1));
        const auto up = round_to_compute(random_normal(tokens * ffn, 2, 3.0f));
        const double limit = l.limit == 0.0f ? std::numeric_limits<double>::infinity()
                                             : static_cast<double>(l.limit);
        std::vector<float> gate_up;
        std::vector<double> want;
        std::vector<double> tolerance;
        for (std::int64_t t = 0; t < tokens; ++t) {
          gate_up.insert(gate_up.end(), gate.begin() + t * ffn, gate.begin() + (t + 1) * ffn);
          gate_up.insert(gate_up.end(), up.begin() + t * ffn, up.begin() + (t + 1) * ffn);
        }
        for (std::size_t i = 0; i < gate.size(); ++i) {
          const double x = l.after ? static_cast<double>(gate[i])
                                   : std::min(static_cast<double>(gate[i]), limit);
          const double value = std::min(reference::activation(f, x),
                                        l.after ? limit : std::numeric_limits<double>::infinity());
          const double factor = std::clamp(static_cast<double>(up[i]), -limit, limit) +
                                static_cast<double>(l.up_offset);
          want.push_back(value * factor);
          tolerance.push_back(error(f, x) * std::abs(factor) +
                              (epsilon() + 3.0 * single) * std::abs(want.back()));
        }
        const auto gate_up_device = upload_padded(stream.compute_dtype(), gate_up, tokens, 2 * ffn);
        const auto y = poisoned_padded(stream.compute_dtype(), tokens, ffn, 1, 4);
        gated_activation(gate_up_device.view, f, l, y.view, stream);
        expect_close(download_inside(y), want, tolerance);
      }
}

TEST_P(ActivationTest, LimitsKnownValues) {
  const DType type = stream.compute_dtype();
  const auto run = [&](const std::vector<float>& gate_up, Activation f, GatedLimits limits) {
    const auto half = static_cast<std::int64_t>(gate_up.size()) / 2;
    const TensorArray y(type, 1, half, stream);
    gated_activation(upload(gate_up, 1, 2 * half), f, limits, y, stream);
    return download(y);
  };
  // min(9, 7) σ(1.702 · 7) · (clamp(up, ±7) + 1): gpt-oss' limits.
  expect_close(run({9.0f, 9.0f, 9.0f, -9.0f}, Activation::quick_gelu, {7.0f, false, 1.0f}),
               {6.9999533 * 8.0, 6.9999533 * -6.0}, {56.0 * epsilon(), 42.0 * epsilon()});
  // silu(9) is 8.9989, so 7 · 3.
  expect_close(run({9.0f, 3.0f}, Activation::silu, {7.0f, true, 0.0f}), {21.0}, {0.0});
  // Nothing limits the gate from below.
  expect_close(run({-9.0f, -9.0f}, Activation::relu, {7.0f, false, 0.0f}), {0.0}, {0.0});

  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Activation f : all)
    for (const bool after : {false, true})
      for (const float limit : {0.0f, 7.0f})
        for (const float value :
             run({nan, 1.0f, 1.0f, nan}, f, {limit, after, limit == 0.0f ? 0.0f : 1.0f}))
          EXPECT_TRUE(std::isnan(value)) << "activation " << static_cast<int>(f);
}

// −0 · up keeps its sign: no limits are no operations.
TEST_P(ActivationTest, WithoutLimitsZerosKeepTheirSigns) {
  const auto gate_up = upload({2.0f, -2.0f, -0.0f, -0.0f}, 1, 4);
  const TensorArray y(stream.compute_dtype(), 1, 2, stream);
  gated_activation(gate_up, Activation::silu, {}, y, stream);
  const auto got = download(y);
  EXPECT_TRUE(std::signbit(got[0]));
  EXPECT_FALSE(std::signbit(got[1]));
}

TEST_P(ActivationTest, KnownValues) {
  const std::vector<float> x{1.0f, -1.0f, 3.0f, 0.0f};
  const std::vector<double> silu{0.7310585786, -0.2689414214, 2.8577223804, 0.0};
  const std::vector<double> gelu{0.8413447461, -0.1586552539, 2.9959503059, 0.0};
  const std::vector<double> gelu_tanh{0.8411919906, -0.1588080094, 2.9963626079, 0.0};
  const std::vector<double> relu2{1.0, 0.0, 9.0, 0.0};
  const std::vector<double> quick_gelu{0.8457957660, -0.1542042340, 2.9819286902, 0.0};
  const std::vector<double> tolerance(4, 3.0 * epsilon() + 1e-7);
  for (const auto& [f, want] :
       {std::pair{Activation::silu, silu}, std::pair{Activation::gelu, gelu},
        std::pair{Activation::gelu_tanh, gelu_tanh}, std::pair{Activation::relu2, relu2},
        std::pair{Activation::quick_gelu, quick_gelu}}) {
    const auto y = poisoned(stream.compute_dtype(), 1, 4);
    activation(upload(x, 1, 4), f, y, stream);
    expect_close(download(y), want, tolerance);
    for (std::size_t i = 0; i < x.size(); ++i)
      EXPECT_NEAR(reference::activation(f, x[i]), want[i], 1e-9);
  }
}

// Parameters as Apertus has them, positive and negative, in every float type. x² e.g. is rounded
// several times; for x ≤ 0, expm1(x) − x cancels, |expm1(x)| ≤ |x|.
TEST_P(ActivationTest, XieluMatchesTheReference) {
  constexpr std::int64_t tokens = 5;
  constexpr float beta = 0.5f;
  constexpr float eps = -1e-6f;
  for (const auto& [raw_p, raw_n] : {std::pair{0.203f, -1.05f}, std::pair{-3.0f, 2.5f}})
    for (const DType type : {DType::f32, DType::f16, DType::bf16})
      for (const std::int64_t ffn : widths) {
        SCOPED_TRACE(testing::Message() << "alphas " << raw_p << ", " << raw_n << " in "
                                        << name_of(type) << ", ffn " << ffn);
        const auto alphas = upload_as<float>({raw_p, raw_n}, 1, 2);
        TensorArray stored(type, 1, 2, stream);
        convert(ConstTensor(alphas.view), stored, stream);
        TensorArray widened(DType::f32, 1, 2, stream);
        convert(stored, widened, stream);
        const auto exact = download(widened);
        const auto x = round_to_compute(inputs(tokens * ffn, 1));
        const double p = std::log1p(std::exp(exact[0]));
        const double n = beta + std::log1p(std::exp(exact[1]));
        std::vector<double> want;
        std::vector<double> tolerance;
        for (const double value : x) {
          want.push_back(reference::xielu(value, exact[0], exact[1], beta, eps));
          const double terms =
              (value > 0.0 ? p * value * value : 2.0 * n * (std::abs(value) + 1e-6)) +
              beta * std::abs(value);
          tolerance.push_back(12.0 * single * terms + epsilon() * std::abs(want.back()));
        }
        const auto x_device = upload_padded(stream.compute_dtype(), x, tokens, ffn);
        const auto y = poisoned_padded(stream.compute_dtype(), tokens, ffn, 1, 4);
        const ConstTensor both = stored;
        xielu(x_device.view, both.col_range(0, 1), both.col_range(1, 1), beta, eps, y.view, stream);
        const auto apart = download_inside(y);
        expect_close(apart, want, tolerance);
        xielu(x_device.view, both.col_range(0, 1), both.col_range(1, 1), beta, eps, x_device.view,
              stream);
        EXPECT_EQ(count_different(download_inside(x_device), apart), 0u) << "in place";
      }
}

TEST_P(ActivationTest, EmbedReadsTablesOfEveryFloatType) {
  constexpr std::int64_t vocab = 301;
  const std::vector<std::int32_t> ids{0, 300, 7, 7, 150, 0, 299};
  const auto tokens = static_cast<std::int64_t>(ids.size());
  for (const std::int64_t d : {1, 5, 64, 576, 1027})
    for (const float multiplier : {1.0f, 24.0f, 0.3f})
      for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
        SCOPED_TRACE(testing::Message()
                     << "d " << d << ", multiplier " << multiplier << ", table " << name_of(type));
        auto table = random_normal(vocab * d, 1);
        std::vector<f16> table_f16;
        std::vector<bf16> table_bf16;
        for (float& value : table) {
          table_f16.push_back(to_f16(value));
          table_bf16.push_back(to_bf16(value));
          if (type == DType::f16) value = to_float(table_f16.back());
          if (type == DType::bf16) value = to_float(table_bf16.back());
        }
        const Array<float> as_f32 = upload_as(table, vocab, d);
        const Array<f16> as_f16 = upload_as(table_f16, vocab, d);
        const Array<bf16> as_bf16 = upload_as(table_bf16, vocab, d);
        ConstTensor device = ConstTensor(as_f32.view);
        if (type == DType::f16) device = ConstTensor(as_f16.view);
        if (type == DType::bf16) device = ConstTensor(as_bf16.view);
        std::vector<double> want;
        std::vector<double> tolerance;
        for (const std::int32_t id : ids)
          for (std::int64_t c = 0; c < d; ++c) {
            want.push_back(static_cast<double>(multiplier) *
                           table[static_cast<std::size_t>(id * d + c)]);
            const bool exact =
                multiplier == 1.0f && (type == stream.compute_dtype() || !stream.on_cuda());
            tolerance.push_back(exact ? 0.0 : (epsilon() + single) * std::abs(want.back()));
          }
        const auto y = poisoned_padded(stream.compute_dtype(), tokens, d);
        embed(upload_as(ids, 1, tokens), device, multiplier, y.view, stream);
        expect_close(download_inside(y), want, tolerance);
      }
}

TEST_P(ActivationTest, ScaleMultipliesInPlace) {
  for (const DType type : {stream.compute_dtype(), DType::f32})
    for (const std::int64_t cols : {1, 9, 256, 1001}) {
      auto values = random_normal(4 * cols, 1);
      if (type == stream.compute_dtype()) values = round_to_compute(values);
      const auto x = upload_padded(type, values, 4, cols);
      scale(x.view, 0.3f, stream);
      std::vector<double> want;
      std::vector<double> tolerance;
      for (const float value : values) {
        want.push_back(static_cast<double>(0.3f) * value);
        tolerance.push_back((roundoff(type) + single) * std::abs(want.back()));
      }
      expect_close(download_inside(x), want, tolerance);
    }
}

TEST_P(ActivationTest, AcceptsNoTokens) {
  const DType type = stream.compute_dtype();
  const TensorArray gate_up(type, 0, 16, stream), y(type, 0, 8, stream);
  EXPECT_NO_THROW(gated_activation(gate_up, Activation::silu, {}, y, stream));
  EXPECT_NO_THROW(activation(y, Activation::silu, y, stream));
  const auto alpha = upload_as<float>({1.0f}, 1, 1);
  EXPECT_NO_THROW(xielu(y, alpha.view, alpha.view, 0.5f, -1e-6f, y, stream));
  EXPECT_NO_THROW(convert(y, y, stream));
  EXPECT_NO_THROW(scale(y, 2.0f, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(ActivationTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const TensorArray x(type, 4, 8, stream), y(type, 4, 8, stream), wide(type, 4, 16, stream),
      tall(type, 5, 8, stream);
  const TensorArray half(DType::f16, 4, 8, stream), integers(DType::i32, 4, 8, stream);
  const Array<std::int32_t> ids(1, 4, stream), more_ids(1, 5, stream);
  EXPECT_NO_THROW(gated_activation(wide, Activation::silu, {}, y, stream));
  EXPECT_THROW(gated_activation(x, Activation::silu, {}, y, stream), std::invalid_argument);
  EXPECT_THROW(gated_activation(wide, Activation::silu, {}, tall, stream), std::invalid_argument);
  EXPECT_THROW(gated_activation(wide, Activation::silu, {}, half, stream), std::invalid_argument);
  EXPECT_THROW(gated_activation(wide, Activation::silu, {-1.0f}, y, stream), std::invalid_argument);
  EXPECT_THROW(activation(x, Activation::silu, tall, stream), std::invalid_argument);
  EXPECT_THROW(activation(x, Activation::silu, half, stream), std::invalid_argument);
  const Array<float> alpha(1, 1, stream), alphas(1, 2, stream);
  EXPECT_THROW(xielu(x, ConstTensor(alpha.view), ConstTensor(alphas.view), 0.5f, 0.0f, y, stream),
               std::invalid_argument);
  EXPECT_THROW(xielu(x, ConstTensor(alpha.view), ConstTensor(alpha.view), 0.5f, 0.0f, tall, stream),
               std::invalid_argument);
  EXPECT_THROW(embed(more_ids, x, 1.0f, y, stream), std::invalid_argument);
  EXPECT_THROW(embed(ids, wide, 1.0f, y, stream), std::invalid_argument);
  EXPECT_THROW(embed(ids, integers, 1.0f, y, stream), std::invalid_argument);
  EXPECT_THROW(scale(integers, 1.0f, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, ActivationTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
