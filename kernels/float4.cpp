#include "kernels/float4.h"

#include <cmath>

#include "kernels/float8.h"
#include "kernels/weights.h"

namespace qpipe {

std::uint8_t to_e2m1(float x) {
  const std::uint8_t sign = std::signbit(x) ? 8 : 0;
  float magnitude = std::fabs(x);
  magnitude = magnitude < 6.0f ? magnitude : 6.0f;
  if (magnitude < 1.0f)
    return static_cast<std::uint8_t>(sign |
                                     static_cast<std::uint8_t>(std::nearbyint(2.0f * magnitude)));
  // One mantissa bit: indices count on with the exponent, 1 being index 2.
  const auto bits = std::bit_cast<std::uint32_t>(magnitude);
  const std::uint32_t rounded = (bits + 0x1fffffu + ((bits >> 22) & 1u)) >> 22;
  return static_cast<std::uint8_t>(sign | (rounded - 252u));
}

std::uint8_t mxfp4_scale(float absmax) {
  const auto bits = std::bit_cast<std::uint32_t>(absmax);
  if (bits >= 0x7f800000u) return 255;
  const std::uint32_t exponent = (bits + 0x200000u) >> 23;
  return static_cast<std::uint8_t>(exponent < 2 ? 0 : exponent - 2);
}

float nvfp4_global_scale(float absmax) {
  const float scale = 2688.0f / absmax;
  return std::isfinite(scale) && scale != 0.0f ? scale : 1.0f;
}

namespace {

// scale_of(max|w| of the group) → its code; value_of(code) → what weights are divided by.
template <class T, class ScaleOf, class ValueOf>
void quantize_groups_of(Matrix<const T> w, std::int64_t group, Matrix<std::uint8_t> packed,
                        Matrix<std::uint8_t> scale, ScaleOf scale_of, ValueOf value_of) {
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < w.rows; ++r)
    for (std::int64_t g = 0; g < scale.cols; ++g) {
      const T* from = w.row(r) + g * group;
      std::uint8_t* to = packed.row(r) + g * group / 2;
      scale(r, g) = scale_of(std::bit_cast<float>(largest_magnitude(from, group)));
      const float value = value_of(scale(r, g));
      for (std::int64_t i = 0; i < group; i += 2) {
        const unsigned high = to_e2m1(to_float(from[i + 1]) / value);
        to[i / 2] = static_cast<std::uint8_t>(to_e2m1(to_float(from[i]) / value) | high << 4);
      }
    }
}

template <class T, class ValueOf>
void dequantize_groups_of(Matrix<const std::uint8_t> packed, Matrix<const std::uint8_t> scale,
                          std::int64_t group, Matrix<T> w, ValueOf value_of) {
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < w.rows; ++r)
    for (std::int64_t c = 0; c < w.cols; ++c) {
      const unsigned pair = packed(r, c / 2);
      const auto code = static_cast<std::uint8_t>(c % 2 == 0 ? pair & 15u : pair >> 4);
      store_rounded(e2m1_to_float(code) * value_of(scale(r, c / group)), w(r, c));
    }
}

void check_shapes(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t group,
                  Matrix<const std::uint8_t> packed, Matrix<const std::uint8_t> scale) {
  require_weights(dtype, "float4: w must be f32, f16 or bf16");
  require(cols % group == 0,
          "float4: the number of columns must be a multiple of the group (NVFP4: 16, MXFP4: 32)");
  require(packed.rows == rows && packed.cols == cols / 2, "float4: packed must be [rows, cols/2]");
  require(scale.rows == rows && scale.cols == cols / group,
          "float4: scale must be [rows, cols/group]");
}

}  // namespace

void accumulate_absmax(ConstTensor w, Matrix<float> largest, Stream& stream) {
  require_weights(w.dtype, "accumulate_absmax: w must be f32, f16 or bf16");
  require(largest.rows == 1 && largest.cols == 1, "accumulate_absmax: largest must be [1, 1]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::accumulate_absmax(w, largest, stream);
  with_type(w, [&](auto x) {
    std::uint32_t bits = std::bit_cast<std::uint32_t>(largest(0, 0));
#pragma omp parallel for schedule(static) reduction(max : bits)
    for (std::int64_t r = 0; r < x.rows; ++r)
      bits = std::max(bits, largest_magnitude(x.row(r), x.cols));
    largest(0, 0) = std::bit_cast<float>(bits);
  });
}

void quantize_nvfp4(ConstTensor w, float global_scale, Matrix<std::uint8_t> packed,
                    Matrix<std::uint8_t> scale, Stream& stream) {
  check_shapes(w.dtype, w.rows, w.cols, nvfp4_group, packed, scale);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::quantize_nvfp4(w, global_scale, packed, scale, stream);
  const auto scale_of = [=](float largest) {
    const std::uint8_t code = to_e4m3(global_scale * (largest / 6.0f));
    return code == 0 ? to_e4m3(0.125f) : code;
  };
  const auto value_of = [=](std::uint8_t code) { return e4m3_to_float(code) / global_scale; };
  with_type(w,
            [&](auto x) { quantize_groups_of(x, nvfp4_group, packed, scale, scale_of, value_of); });
}

void dequantize_nvfp4(Matrix<const std::uint8_t> packed, Matrix<const std::uint8_t> scale,
                      float global_scale, Tensor w, Stream& stream) {
  check_shapes(w.dtype, w.rows, w.cols, nvfp4_group, packed, scale);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::dequantize_nvfp4(packed, scale, global_scale, w, stream);
  const auto value_of = [=](std::uint8_t code) { return e4m3_to_float(code) / global_scale; };
  with_type(w, [&](auto x) { dequantize_groups_of(packed, scale, nvfp4_group, x, value_of); });
}

void quantize_mxfp4(ConstTensor w, Matrix<std::uint8_t> packed, Matrix<std::uint8_t> scale,
                    Stream& stream) {
  check_shapes(w.dtype, w.rows, w.cols, mxfp4_group, packed, scale);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::quantize_mxfp4(w, packed, scale, stream);
  with_type(w, [&](auto x) {
    quantize_groups_of(x, mxfp4_group, packed, scale, mxfp4_scale, e8m0_to_float);
  });
}

void dequantize_mxfp4(Matrix<const std::uint8_t> packed, Matrix<const std::uint8_t> scale, Tensor w,
                      Stream& stream) {
  check_shapes(w.dtype, w.rows, w.cols, mxfp4_group, packed, scale);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::dequantize_mxfp4(packed, scale, w, stream);
  with_type(w, [&](auto x) { dequantize_groups_of(packed, scale, mxfp4_group, x, e8m0_to_float); });
}

}  // namespace qpipe
