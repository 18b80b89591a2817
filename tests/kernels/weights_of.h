// Weights of each element type for tests of kernels that read them as they are stored.
#pragma once

#include <limits>
#include <vector>

#include "tests/kernels/backends.h"

namespace qpipe {

class WeightsTest : public BackendTest {
 protected:
  static constexpr DType types[] = {DType::f32, DType::f16, DType::bf16};

  static float rounded_to(DType dtype, float value) {
    if (dtype == DType::f16) return to_float(to_f16(value));
    if (dtype == DType::bf16) return to_float(to_bf16(value));
    return value;
  }

  static std::vector<float> rounded_to(DType dtype, std::vector<float> values) {
    for (float& value : values) value = rounded_to(dtype, value);
    return values;
  }

  // Row-major values → a device matrix of `dtype`, with room for `stride` columns a row.
  TensorArray upload_weights(const std::vector<float>& values, std::int64_t rows, std::int64_t cols,
                             DType dtype, std::int64_t stride) {
    TensorArray array(dtype, rows, stride, stream);
    std::vector<unsigned char> bytes(static_cast<std::size_t>(array.view.bytes()),
                                     0xff);  // NaN between the rows
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) {
        const float value = values[static_cast<std::size_t>(r * cols + c)];
        const auto at = static_cast<std::size_t>(r * stride + c);
        if (dtype == DType::f16) reinterpret_cast<f16*>(bytes.data())[at] = to_f16(value);
        if (dtype == DType::bf16) reinterpret_cast<bf16*>(bytes.data())[at] = to_bf16(value);
        if (dtype == DType::f32) reinterpret_cast<float*>(bytes.data())[at] = value;
      }
    copy_to_device(array.view.data, bytes.data(), bytes.size(), stream);
    array.view = array.view.col_range(0, cols);
    return array;
  }

  // Contiguous, of any of the three types.
  std::vector<float> download_weights(ConstTensor tensor) {
    if (tensor.dtype != DType::f16) return download(tensor);
    std::vector<f16> narrow(static_cast<std::size_t>(tensor.size()));
    copy_to_host(narrow.data(), tensor.data, narrow.size() * sizeof(f16), stream);
    std::vector<float> values(narrow.size());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = to_float(narrow[i]);
    return values;
  }
};

}  // namespace qpipe
