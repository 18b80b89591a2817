#include "kernels/transpose.h"

#include "tests/kernels/backends.h"

namespace qpipe {

namespace {

class TransposeTest : public BackendTest {
 protected:
  // Every element is its index (in 16 bits: modulo a prime, so that rows and columns differ), with
  // other elements left and right of both views, which keep their values.
  template <class T>
  void check(DType type, std::int64_t rows, std::int64_t cols) {
    SCOPED_TRACE(testing::Message() << rows << " x " << cols << " of " << name_of(type));
    const std::int64_t width = cols + 5;
    std::vector<T> from(static_cast<std::size_t>(rows * width));
    for (std::size_t i = 0; i < from.size(); ++i)
      from[i] = static_cast<T>(sizeof(T) == 2 ? i % 65521 : i);
    const std::int64_t to_width = rows + 3;
    std::vector<T> want(static_cast<std::size_t>(cols * to_width), static_cast<T>(-1));
    Buffer from_memory(from.size() * sizeof(T), stream);
    Buffer to_memory(want.size() * sizeof(T), stream);
    copy_to_device(from_memory.data(), from.data(), from.size() * sizeof(T), stream);
    copy_to_device(to_memory.data(), want.data(), want.size() * sizeof(T), stream);
    transpose(ConstTensor(from_memory.data(), type, rows, width).col_range(2, cols),
              Tensor(to_memory.data(), type, cols, to_width).col_range(1, rows), stream);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c)
        want[static_cast<std::size_t>(c * to_width + 1 + r)] =
            from[static_cast<std::size_t>(r * width + 2 + c)];
    std::vector<T> got(want.size());
    copy_to_host(got.data(), to_memory.data(), got.size() * sizeof(T), stream);
    EXPECT_TRUE(got == want);
  }
};

TEST_P(TransposeTest, MovesEveryElement) {
  struct Case {
    std::int64_t rows, cols;
  };
  for (const auto& [rows, cols] : {Case{1, 1}, Case{1, 200}, Case{200, 1}, Case{31, 33},
                                   Case{64, 64}, Case{65, 127}, Case{300, 1000}, Case{768, 129}})
    for (const DType type : {DType::bf16, DType::f16, DType::f32, DType::i32})
      size_of(type) == 2 ? check<std::uint16_t>(type, rows, cols)
                         : check<std::uint32_t>(type, rows, cols);
}

TEST_P(TransposeTest, AcceptsEmptyMatrices) {
  const TensorArray from(DType::f32, 0, 8, stream), to(DType::f32, 8, 0, stream);
  EXPECT_NO_THROW(transpose(from, to, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(TransposeTest, RefusesInconsistentArguments) {
  const TensorArray from(DType::f32, 4, 8, stream), same(DType::f32, 4, 8, stream),
      half(DType::f16, 8, 4, stream), bytes(DType::i8, 4, 8, stream), more(DType::i8, 8, 4, stream);
  EXPECT_THROW(transpose(from, same, stream), std::invalid_argument);
  EXPECT_THROW(transpose(from, half, stream), std::invalid_argument);
  EXPECT_THROW(transpose(bytes, more, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, TransposeTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
