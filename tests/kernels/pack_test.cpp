// Bitstreams of codes and zeros: golden words of formats.md §1 and §5, the round trip of every
// code, and ragged tiles.
#include "kernels/pack.h"

#include <gtest/gtest.h>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

// Bit by bit: field k of a little-endian stream, without regard to words.
std::vector<std::uint32_t> reference_stream(const std::vector<std::uint8_t>& fields, int bits) {
  std::vector<std::uint32_t> words(fields.size() * static_cast<std::size_t>(bits) / 32);
  for (std::size_t k = 0; k < fields.size(); ++k)
    for (std::size_t b = 0; b < static_cast<std::size_t>(bits); ++b) {
      const std::size_t bit = k * static_cast<std::size_t>(bits) + b;
      words[bit / 32] |= ((std::uint32_t{fields[k]} >> b) & 1u) << (bit % 32);
    }
  return words;
}

class Pack : public BackendTest {
 protected:
  std::vector<std::uint32_t> pack(const std::vector<std::uint8_t>& code, std::int64_t out,
                                  std::int64_t in, int bits) {
    Array<std::uint32_t> words(in * bits / 32, out, stream);
    pack_weights(upload_as(code, out, in), bits, words, stream);
    return download_as(words.view);
  }
  std::vector<std::uint32_t> pack_zero(const std::vector<std::uint8_t>& zero, std::int64_t out,
                                       std::int64_t groups, int bits, int offset) {
    Array<std::uint32_t> words(groups, out * bits / 32, stream);
    pack_zeros(upload_as(zero, out, groups), bits, offset, words, stream);
    return download_as(words.view);
  }
};

TEST_P(Pack, GoldenWords) {
  std::vector<std::uint8_t> code(32);
  for (std::size_t k = 0; k < code.size(); ++k) code[k] = static_cast<std::uint8_t>(k % 8);
  EXPECT_EQ(pack(code, 1, 32, 4), (std::vector<std::uint32_t>(4, 0x76543210u)));
  EXPECT_EQ(pack(code, 1, 32, 3),
            (std::vector<std::uint32_t>{0x88FAC688u, 0xC688FAC6u, 0xFAC688FAu}));
}

TEST_P(Pack, GoldenSymmetricZeros) {
  struct Golden {
    int bits;
    std::vector<std::uint32_t> v1, v2;
  };
  for (const Golden& golden :
       {Golden{2, {0x55555555u, 0x55555555u}, {0xAAAAAAAAu, 0xAAAAAAAAu}},
        Golden{3, {0xDB6DB6DBu, 0xB6DB6DB6u, 0x6DB6DB6Du}, {0x24924924u, 0x49249249u, 0x92492492u}},
        Golden{4, std::vector<std::uint32_t>(4, 0x77777777u),
               std::vector<std::uint32_t>(4, 0x88888888u)},
        Golden{8, std::vector<std::uint32_t>(8, 0x7F7F7F7Fu),
               std::vector<std::uint32_t>(8, 0x80808080u)}}) {
    const std::vector<std::uint8_t> zero(32, static_cast<std::uint8_t>(1 << (golden.bits - 1)));
    EXPECT_EQ(pack_zero(zero, 32, 1, golden.bits, -1), golden.v1) << golden.bits;
    EXPECT_EQ(pack_zero(zero, 32, 1, golden.bits, 0), golden.v2) << golden.bits;
  }
}

// Shapes below, at and beyond the tiles of the CUDA kernel.
TEST_P(Pack, WeightsOfAnyShapeMatchTheBitByBitReferenceAndComeBack) {
  for (const int bits : {2, 3, 4, 8})
    for (const auto& [out, in] : {std::pair<std::int64_t, std::int64_t>{1, 32},
                                  {64, 96},
                                  {65, 128},
                                  {33, 224},
                                  {200, 1024}}) {
      std::mt19937 generator(static_cast<unsigned>(bits * 1000 + out));
      std::vector<std::uint8_t> code(static_cast<std::size_t>(out * in));
      for (auto& c : code) c = static_cast<std::uint8_t>(generator() % (1u << bits));
      const auto words = pack(code, out, in, bits);
      for (std::int64_t n = 0; n < out; ++n) {
        const auto row =
            reference_stream({code.begin() + n * in, code.begin() + (n + 1) * in}, bits);
        for (std::size_t i = 0; i < row.size(); ++i)
          ASSERT_EQ(words[i * static_cast<std::size_t>(out) + static_cast<std::size_t>(n)], row[i])
              << bits << " bits, output " << n;
      }
      Array<std::uint8_t> back(out, in, stream);
      unpack_weights(upload_as(words, in * bits / 32, out), bits, back, stream);
      EXPECT_EQ(download_as(back.view), code) << bits << " bits " << out << " x " << in;
    }
}

TEST_P(Pack, EveryZeroComesBackInBothFormats) {
  for (const int bits : {2, 3, 4, 8})
    for (const int offset : {-1, 0}) {
      const std::int64_t out = 256;
      const std::int64_t groups = 3;
      std::vector<std::uint8_t> zero(static_cast<std::size_t>(out * groups));
      for (std::size_t i = 0; i < zero.size(); ++i)
        zero[i] = static_cast<std::uint8_t>(i % (std::size_t{1} << bits));
      const auto words = pack_zero(zero, out, groups, bits, offset);
      for (std::int64_t g = 0; g < groups; ++g) {
        std::vector<std::uint8_t> fields;
        for (std::int64_t n = 0; n < out; ++n)
          fields.push_back(static_cast<std::uint8_t>(
              (zero[static_cast<std::size_t>(n * groups + g)] + offset) & ((1 << bits) - 1)));
        const auto row = reference_stream(fields, bits);
        EXPECT_TRUE(std::equal(row.begin(), row.end(),
                               words.begin() + g * static_cast<std::int64_t>(row.size())))
            << bits;
      }
      Array<std::uint8_t> back(out, groups, stream);
      unpack_zeros(upload_as(words, groups, out * bits / 32), bits, offset, back, stream);
      EXPECT_EQ(download_as(back.view), zero) << bits << " bits, offset " << offset;
    }
}

TEST_P(Pack, ScalesAreTransposedInTheirPlaces) {
  const std::int64_t out = 45;
  const std::int64_t groups = 3;
  const std::vector<std::int32_t> place{2, 0, 1};
  std::vector<float> scale(static_cast<std::size_t>(out * groups));
  for (std::size_t i = 0; i < scale.size(); ++i) scale[i] = static_cast<float>(i + 1) * 0x1p-12f;
  const auto packed = [&](const std::vector<float>& values) {
    const Array<f16> half(groups, out, stream);
    const Array<std::int32_t> inexact(1, 1, stream);
    fill_zero(inexact.view.data, sizeof(std::int32_t), stream);
    pack_scales(upload_as(values, out, groups), upload_as(place, 1, groups), half, inexact, stream);
    std::vector<f16> stored(values.size());
    copy_to_host(stored.data(), half.view.data, half.memory.bytes(), stream);
    return std::pair(stored, download_as(inexact.view).front());
  };
  const auto [half, inexact] = packed(scale);
  EXPECT_EQ(inexact, 0);
  for (std::int64_t n = 0; n < out; ++n)
    for (std::int64_t g = 0; g < groups; ++g)
      EXPECT_EQ(
          to_float(half[static_cast<std::size_t>(place[static_cast<std::size_t>(g)] * out + n)]),
          scale[static_cast<std::size_t>(n * groups + g)]);
  for (const float planted : {1.0f + 0x1p-11f, 65536.0f, INFINITY, NAN}) {
    std::vector<float> values = scale;
    values[77] = planted;
    EXPECT_EQ(packed(values).second, 1) << planted;
  }
}

TEST_P(Pack, RefusesSizesThatDoNotFillWords) {
  Array<std::uint8_t> code(4, 40, stream);
  Array<std::uint32_t> words(5, 4, stream);
  EXPECT_THROW(pack_weights(code, 4, words, stream), std::invalid_argument);
  Array<std::uint8_t> zero(40, 1, stream);
  Array<std::uint32_t> zero_words(1, 5, stream);
  EXPECT_THROW(pack_zeros(zero, 4, 0, zero_words, stream), std::invalid_argument);
  EXPECT_THROW(pack_weights(code, 5, words, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, Pack, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
