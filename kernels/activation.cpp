#include "kernels/activation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/simd.h"
#include "kernels/softplus.h"
#include "kernels/weights.h"

namespace qpipe {

namespace {

// x / (1 + e^−z): silu with z = x. gelu_tanh too, because (1 + tanh u) / 2 = 1 / (1 + e^−2u).
[[gnu::always_inline]] inline float times_sigmoid(float x, float z) {
  return x / (1.0f + simd_exp(-z));
}

constexpr float sqrt_8_over_pi = 1.59576912160573071f;  // 2 √(2/π)

// y = f(x), or f(x) · up. In place allowed.
QPIPE_SIMD_CLONES void silu_row(const float* x, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = times_sigmoid(x[i], x[i]);
}

QPIPE_SIMD_CLONES void silu_row(const float* x, const float* up, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = times_sigmoid(x[i], x[i]) * up[i];
}

QPIPE_SIMD_CLONES void gelu_tanh_row(const float* x, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i)
    y[i] = times_sigmoid(x[i], sqrt_8_over_pi * (x[i] + 0.044715f * (x[i] * x[i] * x[i])));
}

QPIPE_SIMD_CLONES void relu_row(const float* x, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = x[i] < 0.0f ? 0.0f : x[i];  // keeps NaN
}

QPIPE_SIMD_CLONES void relu2_row(const float* x, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = x[i] < 0.0f ? 0.0f : x[i] * x[i];
}

QPIPE_SIMD_CLONES void quick_gelu_row(const float* x, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = times_sigmoid(x[i], 1.702f * x[i]);
}

// erfc keeps the relative accuracy that 1 + erf loses for x < 0.
void gelu_row(const float* x, std::int64_t count, float* y) {
  constexpr float sqrt_half = 0.707106781186547524f;
  for (std::int64_t i = 0; i < count; ++i) y[i] = 0.5f * x[i] * std::erfc(-x[i] * sqrt_half);
}

QPIPE_SIMD_CLONES void multiply_row(const float* factor, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] *= factor[i];
}

// y = min(x, limit); in place allowed.
QPIPE_SIMD_CLONES void limit_row(const float* x, float limit, std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) y[i] = x[i] > limit ? limit : x[i];  // keeps NaN
}

// y ← y · (clamp(up, ±limit) + offset)
QPIPE_SIMD_CLONES void multiply_limited_row(const float* up, float limit, float offset,
                                            std::int64_t count, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const float below = up[i] > limit ? limit : up[i];
    y[i] *= (below < -limit ? -limit : below) + offset;
  }
}

void activation_row(const float* x, Activation f, std::int64_t count, float* y) {
  switch (f) {
    case Activation::silu: return silu_row(x, count, y);
    case Activation::gelu: return gelu_row(x, count, y);
    case Activation::gelu_tanh: return gelu_tanh_row(x, count, y);
    case Activation::relu: return relu_row(x, count, y);
    case Activation::relu2: return relu2_row(x, count, y);
    case Activation::quick_gelu: return quick_gelu_row(x, count, y);
  }
}

void gated_row(const float* gate, const float* up, Activation f, const GatedLimits& limits,
               std::int64_t count, float* y) {
  const bool limited = limits.limit > 0.0f;
  if (limited && !limits.after) {
    limit_row(gate, limits.limit, count, y);
    activation_row(y, f, count, y);
  } else {
    activation_row(gate, f, count, y);
    if (limited) limit_row(y, limits.limit, count, y);
  }
  if (limited || limits.up_offset != 0.0f)
    multiply_limited_row(up, limited ? limits.limit : std::numeric_limits<float>::infinity(),
                         limits.up_offset, count, y);
  else
    multiply_row(up, count, y);
}

float scalar(ConstTensor x) {
  float value = 0.0f;
  with_type(x, [&](auto element) { value = to_float(element(0, 0)); });
  return value;
}

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

void store(float value, float& out) { out = value; }
void store(float value, f16& out) { out = to_f16(value); }
void store(float value, bf16& out) { out = to_bf16(value); }

template <class From, class To>
void convert_elements(Matrix<const From> from, Matrix<To> to) {
#pragma omp parallel for schedule(static) if (from.rows > 1)
  for (std::int64_t r = 0; r < from.rows; ++r) {
    const From* source = from.row(r);
    To* target = to.row(r);
    if constexpr (std::is_same_v<From, To>)
      std::memmove(target, source, static_cast<std::size_t>(from.cols) * sizeof(To));
    else
      for (std::int64_t c = 0; c < from.cols; ++c) store(to_float(source[c]), target[c]);
  }
}

template <class From>
void convert_from(Matrix<const From> from, Tensor to) {
  switch (to.dtype) {
    case DType::f16: return convert_elements(from, to.as<f16>());
    case DType::bf16: return convert_elements(from, to.as<bf16>());
    default: return convert_elements(from, to.as<float>());
  }
}

template <class T>
void embed_from(Matrix<const std::int32_t> ids, Matrix<const T> table, float multiplier,
                Matrix<float> y) {
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < y.rows; ++t) {
    const T* from = table.row(ids(0, t));
    float* to = y.row(t);
    for (std::int64_t c = 0; c < y.cols; ++c) to[c] = multiplier * to_float(from[c]);
  }
}

}  // namespace

void gated_activation(ConstTensor gate_up, Activation f, const GatedLimits& limits, Tensor y,
                      Stream& stream) {
  require(gate_up.dtype == stream.compute_dtype() && y.dtype == gate_up.dtype,
          "gated_activation: gate_up and y must have the compute type");
  require(gate_up.rows == y.rows && gate_up.cols == 2 * y.cols,
          "gated_activation: gate_up must be [tokens, 2 ffn] and y [tokens, ffn]");
  require(limits.limit >= 0.0f, "gated_activation: the limit must not be negative");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::gated_activation(gate_up, f, limits, y, stream);
  const auto gate = gate_up.as<const float>();
  const auto to = y.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < to.rows; ++t) {
    const float* up = gate.row(t) + to.cols;
    if (f == Activation::silu && limits.limit == 0.0f && limits.up_offset == 0.0f)
      silu_row(gate.row(t), up, to.cols, to.row(t));
    else
      gated_row(gate.row(t), up, f, limits, to.cols, to.row(t));
  }
}

void activation(ConstTensor x, Activation f, Tensor y, Stream& stream) {
  require(x.dtype == stream.compute_dtype() && y.dtype == x.dtype,
          "activation: x and y must have the compute type");
  require(x.rows == y.rows && x.cols == y.cols, "activation: x and y must have the same shape");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::activation(x, f, y, stream);
  const auto from = x.as<const float>();
  const auto to = y.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < to.rows; ++t) activation_row(from.row(t), f, to.cols, to.row(t));
}

void xielu(ConstTensor x, ConstTensor alpha_p, ConstTensor alpha_n, float beta, float eps, Tensor y,
           Stream& stream) {
  require(x.dtype == stream.compute_dtype() && y.dtype == x.dtype,
          "xielu: x and y must have the compute type");
  require(x.rows == y.rows && x.cols == y.cols, "xielu: x and y must have the same shape");
  require(is_float(alpha_p.dtype) && alpha_n.dtype == alpha_p.dtype && alpha_p.size() == 1 &&
              alpha_n.size() == 1,
          "xielu: alpha_p and alpha_n must be [1, 1] of one float type");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::xielu(x, alpha_p, alpha_n, beta, eps, y, stream);
  const auto from = x.as<const float>();
  const auto to = y.as<float>();
  const float positive = softplus(scalar(alpha_p));
  const float negative = beta + softplus(scalar(alpha_n));
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < to.rows; ++t)
    for (std::int64_t c = 0; c < to.cols; ++c) {
      const float value = from(t, c);
      to(t, c) = value > 0.0f
                     ? positive * value * value + beta * value
                     : (std::expm1(std::min(value, eps)) - value) * negative + beta * value;
    }
}

void embed(Matrix<const std::int32_t> ids, ConstTensor table, float multiplier, Tensor y,
           Stream& stream) {
  require(is_float(table.dtype), "embed: table must be f32, f16 or bf16");
  require(y.dtype == stream.compute_dtype(), "embed: y must have the compute type");
  require(ids.rows == 1 && ids.cols == y.rows, "embed: ids must be [1, tokens]");
  require(table.cols == y.cols, "embed: table must be [vocab, d] and y [tokens, d]");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::embed(ids, table, multiplier, y, stream);
  switch (table.dtype) {
    case DType::f16: return embed_from(ids, table.as<const f16>(), multiplier, y.as<float>());
    case DType::bf16: return embed_from(ids, table.as<const bf16>(), multiplier, y.as<float>());
    default: return embed_from(ids, table.as<const float>(), multiplier, y.as<float>());
  }
}

void convert(ConstTensor from, Tensor to, Stream& stream) {
  require(is_float(from.dtype) && is_float(to.dtype), "convert: only f32, f16 and bf16");
  require(from.rows == to.rows && from.cols == to.cols, "convert: both must have the same shape");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::convert(from, to, stream);
  switch (from.dtype) {
    case DType::f16: return convert_from(from.as<const f16>(), to);
    case DType::bf16: return convert_from(from.as<const bf16>(), to);
    default: return convert_from(from.as<const float>(), to);
  }
}

void scale(Tensor x, float alpha, Stream& stream) {
  require(x.dtype == stream.compute_dtype() || x.dtype == DType::f32,
          "scale: x must have the compute type or be float32");
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::scale(x, alpha, stream);
  const auto values = x.as<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t r = 0; r < values.rows; ++r)
    for (std::int64_t c = 0; c < values.cols; ++c) values(r, c) *= alpha;
}

}  // namespace qpipe
