// The backends that this machine has, for parametrised kernel tests:
// `INSTANTIATE_TEST_SUITE_P(Backends, X, testing::ValuesIn(backends()), backend_name)`. Tests of
// CUDA backends are named .../cuda, which the label `gpu` selects.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "kernels/stream.h"

namespace qpipe {

inline std::vector<Backend> backends() {
  std::vector<Backend> found{Backend::cpu};
  if (cuda_device_count() > 0) found.push_back(Backend::cuda);
  return found;
}

inline std::string backend_name(const testing::TestParamInfo<Backend>& info) {
  return info.param == Backend::cuda ? "cuda" : "cpu";
}

class BackendTest : public testing::TestWithParam<Backend> {
 protected:
  Stream stream{GetParam(), 0};

  // Unit roundoff of the compute type.
  double epsilon() const { return stream.on_cuda() ? 0x1p-8 : 0x1p-24; }

  // The values as the compute type holds them: what both the kernel and the double-precision
  // reference must read.
  std::vector<float> round_to_compute(std::vector<float> values) const {
    if (stream.on_cuda())
      for (float& value : values) value = to_float(to_bf16(value));
    return values;
  }

  // Host floats → device matrix of the compute type.
  TensorArray upload(const std::vector<float>& values, std::int64_t rows, std::int64_t cols) {
    TensorArray array(stream.compute_dtype(), rows, cols, stream);
    if (!stream.on_cuda()) {
      copy_to_device(array.view.data, values.data(), values.size() * sizeof(float), stream);
    } else {
      std::vector<bf16> narrow(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) narrow[i] = to_bf16(values[i]);
      copy_to_device(array.view.data, narrow.data(), narrow.size() * sizeof(bf16), stream);
    }
    return array;
  }

  template <class T>
  Array<T> upload_as(const std::vector<T>& values, std::int64_t rows, std::int64_t cols) {
    Array<T> array(rows, cols, stream);
    copy_to_device(array.view.data, values.data(), values.size() * sizeof(T), stream);
    return array;
  }

  // Contiguous device matrix of f32 or bf16 → host floats.
  std::vector<float> download(ConstTensor tensor) {
    std::vector<float> values(static_cast<std::size_t>(tensor.size()));
    if (tensor.dtype == DType::f32) {
      copy_to_host(values.data(), tensor.data, values.size() * sizeof(float), stream);
    } else {
      std::vector<bf16> narrow(values.size());
      copy_to_host(narrow.data(), tensor.data, narrow.size() * sizeof(bf16), stream);
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = to_float(narrow[i]);
    }
    return values;
  }

  template <class T>
  std::vector<T> download_as(Matrix<T> matrix) {
    std::vector<std::remove_const_t<T>> values(static_cast<std::size_t>(matrix.size()));
    copy_to_host(values.data(), matrix.data, values.size() * sizeof(T), stream);
    return values;
  }
};

inline std::vector<float> random_normal(std::int64_t count, unsigned seed, float sigma = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, sigma);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

}  // namespace qpipe
