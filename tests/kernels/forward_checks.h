// What the tests of the forward-pass kernels share: matrices inside wider, poisoned memory, and
// comparison with a double-precision reference under a tolerance for each element.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "tests/kernels/backends.h"

namespace qpipe {

inline constexpr double single =
    0x1p-24;  // unit roundoff of float32, the accumulation type of both backends

// A matrix with columns of NaN to its left and right: views have a stride, and writes outside of
// the view are seen.
struct Padded {
  TensorArray memory;
  Tensor view;
  std::int64_t left = 0;
};

class ForwardTest : public BackendTest {
 protected:
  static std::vector<float> poison(std::int64_t count) {
    return std::vector<float>(static_cast<std::size_t>(count),
                              std::numeric_limits<float>::quiet_NaN());
  }

  TensorArray upload_type(DType dtype, const std::vector<float>& values, std::int64_t rows,
                          std::int64_t cols) {
    if (dtype == stream.compute_dtype()) return upload(values, rows, cols);
    TensorArray array(DType::f32, rows, cols, stream);
    copy_to_device(array.view.data, values.data(), values.size() * sizeof(float), stream);
    return array;
  }

  TensorArray poisoned(DType dtype, std::int64_t rows, std::int64_t cols) {
    return upload_type(dtype, poison(rows * cols), rows, cols);
  }

  Padded upload_padded(DType dtype, const std::vector<float>& values, std::int64_t rows,
                       std::int64_t cols, std::int64_t left = 3, std::int64_t right = 2) {
    const std::int64_t width = left + cols + right;
    std::vector<float> wide = poison(rows * width);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c)
        wide[static_cast<std::size_t>(r * width + left + c)] =
            values[static_cast<std::size_t>(r * cols + c)];
    Padded padded{upload_type(dtype, wide, rows, width), {}, left};
    padded.view = padded.memory.view.col_range(left, cols);
    return padded;
  }

  Padded poisoned_padded(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t left = 3,
                         std::int64_t right = 2) {
    return upload_padded(dtype, poison(rows * cols), rows, cols, left, right);
  }

  // The inside; expects that the padding is still NaN.
  std::vector<float> download_inside(const Padded& padded) {
    const std::vector<float> wide = download(padded.memory);
    const std::int64_t width = padded.memory.view.cols;
    std::vector<float> values;
    std::int64_t overwritten = 0;
    for (std::int64_t r = 0; r < padded.view.rows; ++r)
      for (std::int64_t c = 0; c < width; ++c) {
        const float value = wide[static_cast<std::size_t>(r * width + c)];
        if (c >= padded.left && c < padded.left + padded.view.cols)
          values.push_back(value);
        else if (!std::isnan(value))
          ++overwritten;
      }
    EXPECT_EQ(overwritten, 0) << "elements outside of the output were written";
    return values;
  }

  // Unit roundoff of a type that this backend writes.
  static double roundoff(DType dtype) { return dtype == DType::bf16 ? 0x1p-8 : single; }
};

// |got − want| ≤ tolerance, element by element; NaN fails.
inline void expect_close(const std::vector<float>& got, const std::vector<double>& want,
                         const std::vector<double>& tolerance) {
  ASSERT_EQ(got.size(), want.size());
  ASSERT_EQ(got.size(), tolerance.size());
  std::size_t wrong = 0;
  std::size_t first = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    if (!(std::abs(static_cast<double>(got[i]) - want[i]) <= tolerance[i]) && wrong++ == 0)
      first = i;
  if (wrong > 0)
    ADD_FAILURE() << wrong << " of " << got.size() << " elements differ; the first, [" << first
                  << "]: got " << got[first] << ", want " << want[first] << " ± "
                  << tolerance[first];
}

// Equal bits, NaN included, but for the sign of zero.
inline std::size_t count_different(const std::vector<float>& a, const std::vector<float>& b) {
  std::size_t different = a.size() == b.size() ? 0 : std::max(a.size(), b.size());
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) ++different;
  return different;
}

inline std::vector<float> absolute(std::vector<float> values) {
  for (float& value : values) value = std::abs(value);
  return values;
}

}  // namespace qpipe
