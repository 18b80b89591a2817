#include "kernels/blockwise.h"

#include <bit>
#include <cmath>
#include <limits>
#include <span>

#include "tests/golden/bnb_golden.h"
#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

constexpr FourBitKind kinds[] = {FourBitKind::nf4, FourBitKind::fp4};

template <std::size_t n>
std::vector<float> floats(const std::uint32_t (&bits)[n]) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = std::bit_cast<float>(bits[i]);
  return values;
}

template <class T>
std::vector<T> narrowed(const std::vector<float>& values) {
  std::vector<T> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    if constexpr (std::is_same_v<T, float>)
      result[i] = values[i];
    else if constexpr (std::is_same_v<T, bf16>)
      result[i] = to_bf16(values[i]);
    else
      result[i] = to_f16(values[i]);
  return result;
}

struct Quantized {
  std::vector<std::uint8_t> packed;
  std::vector<float> absmax;
  int code(std::size_t i) const { return i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15; }
};

class BlockwiseTest : public BackendTest {
 protected:
  // `shift` elements are left free before the weight on the device: unaligned.
  template <class T>
  Quantized quantize(const std::vector<T>& w, FourBitKind kind, std::int64_t block_size,
                     std::int64_t shift = 0) {
    const auto count = static_cast<std::int64_t>(w.size());
    const Array<T> memory(1, count + shift, stream);
    const Matrix<T> view = memory.view.col_range(shift, count);
    if (count != 0) copy_to_device(view.data, w.data(), w.size() * sizeof(T), stream);
    const Array<float> absmax(1, block_count(count, block_size), stream);
    const Array<std::uint8_t> packed(1, (count + 1) / 2, stream);
    quantize_blocks(Tensor(view.data, dtype_of<T>, 1, count), kind, block_size, absmax, packed,
                    stream);
    return {download_as(packed.view), download_as(absmax.view)};
  }

  template <class T>
  std::vector<T> dequantize(const Quantized& q, FourBitKind kind, std::int64_t block_size,
                            std::int64_t count, std::int64_t shift = 0) {
    const auto packed = upload_as(q.packed, 1, static_cast<std::int64_t>(q.packed.size()));
    const auto absmax = upload_as(q.absmax, 1, static_cast<std::int64_t>(q.absmax.size()));
    const Array<T> memory(1, count + shift, stream);
    const Matrix<T> view = memory.view.col_range(shift, count);
    dequantize_blocks(packed, absmax, kind, block_size, Tensor(view.data, dtype_of<T>, 1, count),
                      stream);
    return download_as(view);
  }

  // Codes, maxima and values are bitsandbytes' own.
  template <class T, class Bits>
  void expect_golden(FourBitKind kind, std::span<const std::uint8_t> packed64,
                     std::span<const std::uint32_t> absmax64,
                     std::span<const std::uint8_t> packed256,
                     std::span<const std::uint32_t> absmax256, std::span<const Bits> value) {
    const auto w = narrowed<T>(floats(golden::weight));
    for (const std::int64_t block_size : {64, 256}) {
      const auto packed = block_size == 64 ? packed64 : packed256;
      const auto absmax = block_size == 64 ? absmax64 : absmax256;
      const Quantized q = quantize(w, kind, block_size);
      ASSERT_EQ(q.packed.size(), packed.size());
      ASSERT_EQ(q.absmax.size(), absmax.size());
      for (std::size_t i = 0; i < packed.size(); ++i)
        ASSERT_EQ(int{q.packed[i]}, int{packed[i]}) << "byte " << i;
      for (std::size_t i = 0; i < absmax.size(); ++i)
        ASSERT_EQ(std::bit_cast<std::uint32_t>(q.absmax[i]), absmax[i]) << "block " << i;
      if (block_size != 64) continue;
      const auto back = dequantize<T>(q, kind, 64, static_cast<std::int64_t>(w.size()));
      ASSERT_EQ(back.size(), value.size());
      for (std::size_t i = 0; i < value.size(); ++i)
        ASSERT_EQ(std::bit_cast<Bits>(back[i]), value[i]) << "element " << i;
    }
  }
};

TEST_P(BlockwiseTest, BytesOfBitsandbytes) {
#define EXPECT_GOLDEN(T, Bits, kind, name)                                       \
  expect_golden<T, Bits>(FourBitKind::kind, golden::packed_##kind##_##name##_64, \
                         golden::absmax_##kind##_##name##_64,                    \
                         golden::packed_##kind##_##name##_256,                   \
                         golden::absmax_##kind##_##name##_256, golden::value_##kind##_##name)
  EXPECT_GOLDEN(float, std::uint32_t, nf4, f32);
  EXPECT_GOLDEN(float, std::uint32_t, fp4, f32);
  EXPECT_GOLDEN(bf16, std::uint16_t, nf4, bf16);
  EXPECT_GOLDEN(bf16, std::uint16_t, fp4, bf16);
  EXPECT_GOLDEN(f16, std::uint16_t, nf4, f16);
  EXPECT_GOLDEN(f16, std::uint16_t, fp4, f16);
#undef EXPECT_GOLDEN
}

// The vectors of formats.md §5.
TEST_P(BlockwiseTest, HighNibbleFirst) {
  std::vector<float> w(64);
  w[0] = 1.0f;
  w[1] = -1.0f;
  w[3] = 0.5f;
  const Quantized nf4 = quantize(w, FourBitKind::nf4, 64);
  EXPECT_EQ(int{nf4.packed[0]}, 0xf0);
  EXPECT_EQ(int{nf4.packed[1]}, 0x7c);
  for (std::size_t i = 2; i < 32; ++i) EXPECT_EQ(int{nf4.packed[i]}, 0x77);
  const Quantized fp4 = quantize(w, FourBitKind::fp4, 64);
  EXPECT_EQ(int{fp4.packed[0]}, 0x3b);
  EXPECT_EQ(int{fp4.packed[1]}, 0x05);
  for (std::size_t i = 2; i < 32; ++i) EXPECT_EQ(int{fp4.packed[i]}, 0x00);
}

TEST_P(BlockwiseTest, EveryCodeRoundTrips) {
  for (const FourBitKind kind : kinds) {
    const FourBitTable table = four_bit_table(kind);
    for (const float absmax : {1.0f, 0.0173f, 3.7e4f, 1e-30f, 0x1.fffffep-7f}) {
      std::vector<float> w(64, absmax);  // the block needs its maximum
      for (std::size_t code = 0; code < 16; ++code) w[code] = table.value[code] * absmax;
      const Quantized q = quantize(w, kind, 64);
      for (std::size_t code = 0; code < 16; ++code) {
        const bool second_zero = kind == FourBitKind::fp4 && code == 8;
        EXPECT_EQ(q.code(code), second_zero ? 0 : static_cast<int>(code)) << absmax;
      }
      EXPECT_EQ(dequantize<float>(q, kind, 64, 64), w);
    }
  }
}

TEST_P(BlockwiseTest, TiesGoToTheSmallerValue) {
  for (const FourBitKind kind : kinds) {
    const FourBitTable table = four_bit_table(kind);
    std::vector<float> w(64, 1.0f);
    for (std::size_t i = 0; i < 15; ++i) {
      const double lower = table.value[table.ordered[i]];
      const double upper = table.value[table.ordered[i + 1]];
      ASSERT_LE(lower, upper);
      // The float32 midpoint: the exact one, rounded half to even.
      ASSERT_EQ(table.threshold[i], static_cast<float>((lower + upper) / 2));
      w[3 * i] = table.threshold[i];
      w[3 * i + 1] = std::nextafter(table.threshold[i], 2.0f);
      w[3 * i + 2] = std::nextafter(table.threshold[i], -2.0f);
    }
    const Quantized q = quantize(w, kind, 64);
    for (std::size_t i = 0; i < 15; ++i) {
      EXPECT_EQ(q.code(3 * i), int{table.ordered[i]});
      EXPECT_EQ(q.code(3 * i + 1), int{table.ordered[i + 1]});
      EXPECT_EQ(q.code(3 * i + 2), int{table.ordered[i]});
    }
  }
}

// Against the definition in double, for all block sizes, types, lengths and alignments.
TEST_P(BlockwiseTest, NearestValue) {
  const auto check = [&](auto zero, FourBitKind kind, std::int64_t block_size, std::int64_t count,
                         std::int64_t shift) {
    using T = decltype(zero);
    auto values = random_normal(count, static_cast<unsigned>(count + block_size), 0.02f);
    const auto w = narrowed<T>(values);
    const Quantized q = quantize(w, kind, block_size, shift);
    const FourBitTable table = four_bit_table(kind);
    const auto back = dequantize<float>(q, kind, block_size, count);
    const auto same_type = dequantize<T>(q, kind, block_size, count, shift);
    for (std::int64_t begin = 0; begin < count; begin += block_size) {
      double absmax = 0.0;
      const std::int64_t end = std::min(begin + block_size, count);
      for (std::int64_t i = begin; i < end; ++i)
        absmax = std::max(absmax, std::fabs(double{to_float(w[i])}));
      ASSERT_EQ(q.absmax[begin / block_size], absmax);
      for (std::int64_t i = begin; i < end; ++i) {
        double best = std::numeric_limits<double>::infinity();
        for (const float value : table.value)
          best = std::min(best, std::fabs(to_float(w[i]) - value * absmax));
        const double chosen = std::fabs(to_float(w[i]) - table.value[q.code(i)] * absmax);
        // The reciprocal, the product and the midpoint are rounded once each: x is wrong by less
        // than 2^-22.
        ASSERT_LE(chosen, best + 2 * absmax * 0x1p-22)
            << i << " of " << count << ", blocks of " << block_size;
        ASSERT_EQ(back[i], table.value[q.code(i)] * q.absmax[begin / block_size]);
        ASSERT_EQ(to_float(same_type[i]), to_float(narrowed<T>({back[i]})[0]));
      }
    }
    if (count % 2 != 0) {
      ASSERT_EQ(q.packed.back() & 15, kind == FourBitKind::nf4 ? 7 : 0);
    }
  };
  for (const FourBitKind kind : kinds)
    for (const std::int64_t block_size : {32, 64, 128, 256, 512, 1024, 2048, 4096})
      for (const std::int64_t count : {0, 1, 2, 63, 64, 65, 4096, 4096 + 777})
        for (const std::int64_t shift : {0, 1}) {
          check(float{}, kind, block_size, count, shift);
          check(bf16{}, kind, block_size, count, shift);
          check(f16{}, kind, block_size, count, shift);
        }
}

TEST_P(BlockwiseTest, RangesOfBlocksCanBeShared) {
  const std::int64_t count = 100 * 64 + 10;
  const auto w = narrowed<bf16>(random_normal(count, 3));
  for (const FourBitKind kind : kinds) {
    const Quantized whole = quantize(w, kind, 64);
    Quantized joined;
    for (const auto& [begin, end] :
         {std::pair{0, 7 * 64}, {7 * 64, 8 * 64}, {8 * 64, 8 * 64}, {8 * 64, 100 * 64 + 10}}) {
      const Quantized part =
          quantize(std::vector<bf16>(w.begin() + begin, w.begin() + end), kind, 64);
      joined.packed.insert(joined.packed.end(), part.packed.begin(), part.packed.end());
      joined.absmax.insert(joined.absmax.end(), part.absmax.begin(), part.absmax.end());
    }
    EXPECT_EQ(joined.packed, whole.packed);
    EXPECT_EQ(joined.absmax, whole.absmax);
  }
}

TEST_P(BlockwiseTest, NotFiniteShowsInTheMaximum) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const FourBitKind kind : kinds)
    for (const std::size_t at :
         {std::size_t{1}, std::size_t{63}, std::size_t{70}}) {  // 70: in the shorter last block
      std::vector<float> w(100, 0.5f);
      w[at] = -std::numeric_limits<float>::quiet_NaN();
      const Quantized nan = quantize(w, kind, 64);
      EXPECT_TRUE(std::isnan(nan.absmax[at / 64]));
      EXPECT_EQ(nan.absmax[1 - at / 64], 0.5f);
      EXPECT_EQ(nan.code(at), kind == FourBitKind::nf4 ? 15 : 3);
      w[at] = -infinity;
      EXPECT_EQ(quantize(w, kind, 64).absmax[at / 64], infinity);
    }
}

TEST_P(BlockwiseTest, EqualOnAllBackends) {
  Stream cpu(Backend::cpu, 0);
  auto w = random_normal(64 * 5000 + 31, 17);
  for (std::size_t i = 0; i < w.size(); ++i)
    w[i] *= std::ldexp(1.0f, static_cast<int>(i / 640) % 160 - 140);
  const auto count = static_cast<std::int64_t>(w.size());
  for (const FourBitKind kind : kinds) {
    const Quantized here = quantize(w, kind, 64);
    Quantized there{std::vector<std::uint8_t>(here.packed.size()),
                    std::vector<float>(here.absmax.size())};
    quantize_blocks(Matrix<const float>{w.data(), 1, count}, kind, 64,
                    {there.absmax.data(), 1, block_count(count, 64)},
                    {there.packed.data(), 1, (count + 1) / 2}, cpu);
    EXPECT_EQ(here.packed, there.packed);
    EXPECT_EQ(here.absmax, there.absmax);
  }
}

TEST_P(BlockwiseTest, RefusesImpossibleSizes) {
  const Array<float> w(2, 64, stream);
  const Array<float> absmax(1, 2, stream);
  const Array<std::uint8_t> packed(1, 64, stream);
  EXPECT_THROW(quantize_blocks(w.view, FourBitKind::nf4, 48, absmax, packed, stream),
               std::invalid_argument);
  EXPECT_THROW(quantize_blocks(w.view, FourBitKind::nf4, 8192, absmax, packed, stream),
               std::invalid_argument);
  EXPECT_THROW(quantize_blocks(w.view, FourBitKind::nf4, 128, absmax, packed, stream),
               std::invalid_argument);
  EXPECT_THROW(quantize_blocks(w.view.col_range(0, 32), FourBitKind::nf4, 32, absmax,
                               packed.view.col_range(0, 32), stream),
               std::invalid_argument);
  EXPECT_THROW(
      quantize_blocks(w.view, FourBitKind::nf4, 64, absmax, packed.view.col_range(0, 63), stream),
      std::invalid_argument);
  const TensorArray integers(DType::i32, 2, 64, stream);
  EXPECT_THROW(quantize_blocks(integers, FourBitKind::nf4, 64, absmax, packed, stream),
               std::invalid_argument);
}

class AbsmaxTest : public BackendTest {
 protected:
  struct Nested {
    float offset;
    std::vector<std::uint8_t> code;
    std::vector<float> nested_absmax;
  };
  Nested quantize(const std::vector<float>& absmax) {
    const auto count = static_cast<std::int64_t>(absmax.size());
    const auto on_device = upload_as(absmax, 1, count);
    const Array<float> offset(1, 1, stream);
    const Array<std::uint8_t> code(1, count, stream);
    const Array<float> nested_absmax(1, block_count(count, absmax_block_size), stream);
    quantize_absmax(on_device, offset, code, nested_absmax, stream);
    return {download_as(offset.view)[0], download_as(code.view), download_as(nested_absmax.view)};
  }
  std::vector<float> dequantize(const Nested& nested) {
    const auto count = static_cast<std::int64_t>(nested.code.size());
    const auto code = upload_as(nested.code, 1, count);
    const auto nested_absmax =
        upload_as(nested.nested_absmax, 1, block_count(count, absmax_block_size));
    const auto table = dynamic_map();
    const auto map = upload_as(std::vector<float>(table.begin(), table.end()), 1, 256);
    const Array<float> absmax(1, count, stream);
    dequantize_absmax(code, map, nested_absmax, absmax_block_size, nested.offset, absmax, stream);
    return download_as(absmax.view);
  }
};

TEST(DynamicMap, BitsOfBitsandbytes) {
  const auto map = dynamic_map();
  for (std::size_t i = 0; i < 256; ++i)
    EXPECT_EQ(std::bit_cast<std::uint32_t>(map[i]), golden::dynamic_map_bits[i]) << i;
}

TEST_P(AbsmaxTest, BytesOfBitsandbytes) {
  const auto check = [&](const Nested& nested, float offset, std::span<const std::uint8_t> code,
                         std::span<const std::uint32_t> nested_absmax) {
    EXPECT_EQ(nested.offset, offset);
    ASSERT_EQ(nested.code.size(), code.size());
    for (std::size_t i = 0; i < code.size(); ++i) ASSERT_EQ(int{nested.code[i]}, int{code[i]}) << i;
    ASSERT_EQ(nested.nested_absmax.size(), nested_absmax.size());
    for (std::size_t i = 0; i < nested_absmax.size(); ++i)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(nested.nested_absmax[i]), nested_absmax[i]) << i;
  };
  const Nested nested = quantize(floats(golden::maxima));
  check(nested, floats(golden::maxima_offset)[0], golden::maxima_code, golden::maxima_nested);
  const auto value = dequantize(nested);
  for (std::size_t i = 0; i < value.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(value[i]), golden::maxima_value[i]) << i;
  check(quantize(floats(golden::ramp)), floats(golden::ramp_offset)[0], golden::ramp_code,
        golden::ramp_nested);
}

TEST_P(AbsmaxTest, NearestOfTheMap) {
  const auto map = dynamic_map();
  for (const std::int64_t count : {1, 2, 255, 256, 257, 70000}) {
    auto absmax = random_normal(count, static_cast<unsigned>(count), 0.01f);
    for (float& value : absmax) value = 0.05f + std::fabs(value);
    const Nested nested = quantize(absmax);
    double sum = 0.0;
    for (const float value : absmax) sum += value;
    EXPECT_EQ(nested.offset, static_cast<float>(sum / static_cast<double>(count)));
    const auto back = dequantize(nested);
    for (std::int64_t i = 0; i < count; ++i) {
      const double scale = nested.nested_absmax[i / 256];
      const double y = double{absmax[i]} - nested.offset;
      double best = std::numeric_limits<double>::infinity();
      for (const float value : map) best = std::min(best, std::fabs(y - value * scale));
      // Half a step of bitsandbytes' 65,536 on [−1, 1], and the roundings of y (of the size of
      // absmax) and x.
      const double tolerance = 2 * (scale * (0.5 * 2.0 / 65535 + 0x1p-21) + absmax[i] * 0x1p-24);
      ASSERT_LE(std::fabs(y - map[nested.code[i]] * scale), best + tolerance) << i;
      ASSERT_EQ(back[i], map[nested.code[i]] * nested.nested_absmax[i / 256] + nested.offset);
    }
  }
}

TEST_P(AbsmaxTest, EqualMaximaAndNotFinite) {
  const Nested equal = quantize(std::vector<float>(300, 0.75f));
  EXPECT_EQ(equal.offset, 0.75f);
  EXPECT_EQ(equal.nested_absmax, std::vector<float>(2, 0.0f));
  EXPECT_EQ(equal.code, std::vector<std::uint8_t>(300, 0));
  EXPECT_EQ(dequantize(equal), std::vector<float>(300, 0.75f));
  std::vector<float> absmax(300, 0.75f);
  absmax[280] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(quantize(absmax).offset));
  absmax[280] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isinf(quantize(absmax).offset));
}

TEST_P(AbsmaxTest, EqualOnAllBackends) {
  Stream cpu(Backend::cpu, 0);
  auto absmax = random_normal(1000 * 256 + 3, 23);
  for (float& value : absmax) value = std::fabs(value);
  const auto count = static_cast<std::int64_t>(absmax.size());
  const Nested here = quantize(absmax);
  Nested there{0.0f, std::vector<std::uint8_t>(here.code.size()),
               std::vector<float>(here.nested_absmax.size())};
  quantize_absmax({absmax.data(), 1, count}, {&there.offset, 1, 1}, {there.code.data(), 1, count},
                  {there.nested_absmax.data(), 1, block_count(count, absmax_block_size)}, cpu);
  EXPECT_EQ(here.offset, there.offset);
  EXPECT_EQ(here.code, there.code);
  EXPECT_EQ(here.nested_absmax, there.nested_absmax);
}

INSTANTIATE_TEST_SUITE_P(Backends, BlockwiseTest, testing::ValuesIn(backends()), backend_name);
INSTANTIATE_TEST_SUITE_P(Backends, AbsmaxTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
