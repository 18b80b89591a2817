#include "kernels/pack_rows.h"

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

// One bit after the other: element k's bit i is bit b·k + i of the stream.
std::vector<std::uint32_t> bitstream(const std::vector<std::uint8_t>& code, int bits) {
  std::vector<std::uint32_t> words((code.size() * bits + 31) / 32, 0);
  for (std::size_t k = 0; k < code.size(); ++k)
    for (int i = 0; i < bits; ++i) {
      const std::size_t bit = k * bits + i;
      words[bit / 32] |= static_cast<std::uint32_t>(code[k] >> i & 1) << (bit % 32);
    }
  return words;
}

class PackRowsTest : public BackendTest {
 protected:
  static std::vector<std::uint8_t> random_codes(std::int64_t count, int bits, unsigned seed) {
    std::mt19937 generator(seed);
    std::vector<std::uint8_t> code(static_cast<std::size_t>(count));
    for (auto& c : code) c = static_cast<std::uint8_t>(generator() % (1u << bits));
    return code;
  }
};

TEST_P(PackRowsTest, GoldenWords) {
  const auto rows = [&](const std::vector<std::uint8_t>& code, int bits) {
    const auto cols = static_cast<std::int64_t>(code.size());
    const Array<std::uint32_t> words(1, packed_words(cols, bits), stream);
    pack_rows(upload_as(code, 1, cols), bits, words, stream);
    return download_as(words.view);
  };
  std::vector<std::uint8_t> code(8);
  for (int i = 0; i < 8; ++i)
    code[i] = static_cast<std::uint8_t>(i - 8 + 8);  // int4 −8 … −1 with the offset 8
  EXPECT_EQ(rows(code, 4), std::vector<std::uint32_t>{0x76543210u});
  code.resize(32);
  for (int i = 0; i < 32; ++i) code[i] = static_cast<std::uint8_t>(i % 8);
  EXPECT_EQ(rows(code, 3), (std::vector<std::uint32_t>{0x88FAC688u, 0xC688FAC6u, 0xFAC688FAu}));
  EXPECT_EQ(rows({0x80, 0x7f, 0xff, 0x00}, 8), std::vector<std::uint32_t>{0x00ff7f80u});
  EXPECT_EQ(rows({1, 2, 3}, 2), std::vector<std::uint32_t>{0x39u});

  const Array<std::uint32_t> word(1, 1, stream);
  pack_awq(upload_as<std::uint8_t>({0, 1, 2, 3, 4, 5, 6, 7}, 8, 1), word, stream);
  EXPECT_EQ(download_as(word.view)[0], 0x75316420u);
}

TEST_P(PackRowsTest, RowsAreBitstreams) {
  const std::int64_t rows = 5;
  for (const int bits : {2, 3, 4, 8})
    for (const std::int64_t cols : {1, 7, 11, 31, 32, 33, 64, 100, 8192 + 64})
      for (const std::int64_t padding : {0, 16, 3}) {
        const std::int64_t stride = cols + padding;
        const auto code = random_codes(rows * stride, bits, static_cast<unsigned>(cols));
        const Array<std::uint8_t> on_device = upload_as(code, rows, stride);
        const std::int64_t word_count = packed_words(cols, bits);
        const Array<std::uint32_t> words = upload_as(
            std::vector<std::uint32_t>(rows * (word_count + 1), 0xdeadbeefu), rows, word_count + 1);
        pack_rows(on_device.view.col_range(0, cols), bits, words.view.col_range(0, word_count),
                  stream);
        const auto got = download_as(words.view);
        for (std::int64_t r = 0; r < rows; ++r) {
          auto wanted =
              bitstream({code.begin() + r * stride, code.begin() + r * stride + cols}, bits);
          wanted.push_back(0xdeadbeefu);  // nothing is written beyond the row
          ASSERT_EQ(std::vector<std::uint32_t>(got.begin() + r * (word_count + 1),
                                               got.begin() + (r + 1) * (word_count + 1)),
                    wanted)
              << bits << " bits, " << cols;
        }
        const Array<std::uint8_t> back =
            upload_as(std::vector<std::uint8_t>(rows * stride, 0xee), rows, stride);
        unpack_rows(words.view.col_range(0, word_count), bits, back.view.col_range(0, cols),
                    stream);
        const auto unpacked = download_as(back.view);
        for (std::int64_t i = 0; i < rows * stride; ++i)
          ASSERT_EQ(int{unpacked[i]}, i % stride < cols ? int{code[i]} : 0xee);
      }
}

TEST_P(PackRowsTest, ColumnsAreBitstreams) {
  for (const int bits : {2, 3, 4, 8})
    for (const std::int64_t rows : {1, 8, 12, 32, 45, 96})
      for (const std::int64_t cols : {1, 5, 300}) {
        const auto zero = random_codes(rows * cols, bits, static_cast<unsigned>(rows));
        const std::int64_t word_rows = packed_words(rows, bits);
        const Array<std::uint32_t> words(word_rows, cols, stream);
        pack_columns(upload_as(zero, rows, cols), bits, words, stream);
        const auto got = download_as(words.view);
        for (std::int64_t c = 0; c < cols; ++c) {
          std::vector<std::uint8_t> column;
          for (std::int64_t r = 0; r < rows; ++r) column.push_back(zero[r * cols + c]);
          const auto wanted = bitstream(column, bits);
          for (std::int64_t w = 0; w < word_rows; ++w) ASSERT_EQ(got[w * cols + c], wanted[w]);
        }
        const Array<std::uint8_t> back(rows, cols, stream);
        unpack_columns(words, bits, back, stream);
        ASSERT_EQ(download_as(back.view), zero);
      }
}

TEST_P(PackRowsTest, Awq) {
  for (const std::int64_t out : {8, 32, 264, 520})
    for (const std::int64_t in : {1, 3, 64, 130}) {
      const auto code = random_codes(out * in, 4, static_cast<unsigned>(out + in));
      const Array<std::uint32_t> words(in, out / 8, stream);
      pack_awq(upload_as(code, out, in), words, stream);
      const auto got = download_as(words.view);
      // AutoAWQ unpacks nibbles in order and then takes columns 8c + {0, 4, 1, 5, 2, 6, 3, 7}.
      const int unpacking[8] = {0, 4, 1, 5, 2, 6, 3, 7};
      for (std::int64_t k = 0; k < in; ++k)
        for (std::int64_t n = 0; n < out; ++n)
          ASSERT_EQ(got[k * (out / 8) + n / 8] >> (4 * unpacking[n % 8]) & 15u,
                    std::uint32_t{code[n * in + k]});
      const Array<std::uint8_t> back(out, in, stream);
      unpack_awq(words, back, stream);
      ASSERT_EQ(download_as(back.view), code);
    }
}

TEST_P(PackRowsTest, RefusesImpossibleSizes) {
  const Array<std::uint8_t> code(12, 33, stream);
  const Array<std::uint32_t> words(12, 4, stream), wide(12, 5, stream), awq(33, 1, stream);
  EXPECT_THROW(pack_rows(code, 4, words, stream), std::invalid_argument);
  EXPECT_NO_THROW(pack_rows(code, 4, wide, stream));
  EXPECT_THROW(pack_rows(code, 5, wide, stream), std::invalid_argument);
  EXPECT_THROW(unpack_rows(words, 4, code, stream), std::invalid_argument);
  EXPECT_THROW(pack_columns(code, 4, words, stream), std::invalid_argument);
  EXPECT_THROW(unpack_columns(words, 4, code, stream), std::invalid_argument);
  EXPECT_THROW(pack_awq(code, awq, stream), std::invalid_argument);
  const Array<std::uint8_t> empty(0, 33, stream);
  const Array<std::uint32_t> no_words(0, 5, stream);
  pack_rows(empty, 4, no_words, stream);
  unpack_rows(no_words, 4, empty, stream);
}

INSTANTIATE_TEST_SUITE_P(Backends, PackRowsTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
