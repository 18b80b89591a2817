#include <limits>

#include "kernels/activation.h"
#include "kernels/softplus_cuda.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

template <Activation f>
__device__ float apply(float x) {
  if constexpr (f == Activation::silu) return x / (1.0f + expf(-x));
  if constexpr (f == Activation::gelu) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
  if constexpr (f == Activation::gelu_tanh)
    return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
  if constexpr (f == Activation::relu) return x < 0.0f ? 0.0f : x;  // NaN stays NaN
  if constexpr (f == Activation::relu2) return x < 0.0f ? 0.0f : x * x;
  if constexpr (f == Activation::quick_gelu) return x / (1.0f + expf(-1.702f * x));
}

// GatedLimits without branches: infinity where nothing is limited, −0 where nothing is added.
struct Limits {
  float gate;
  float result;  // f(gate)
  float up;
  float up_offset;
};

Limits limits_of(const GatedLimits& limits) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const float limit = limits.limit > 0.0f ? limits.limit : infinity;
  return {limits.after ? infinity : limit, limits.after ? limit : infinity, limit,
          limits.up_offset == 0.0f ? -0.0f : limits.up_offset};
}

__device__ float at_most(float x, float limit) { return x > limit ? limit : x; }  // keeps NaN
__device__ float at_least(float x, float limit) { return x < limit ? limit : x; }

// y = f(x), or f(gate) · up with x = gate | up, within limits. Every thread reads its elements
// before it writes them: y may be x.
template <Activation f, bool gated, int count>
__global__ __launch_bounds__(row_threads) void activation_kernel(
    const __nv_bfloat16* x, std::int64_t x_stride, Limits limits, __nv_bfloat16* y,
    std::int64_t y_stride, std::int64_t rows, std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float value[count];
    float up[count];
    load(x + r * x_stride + c, value);
    if constexpr (gated) load(x + r * x_stride + cols + c, up);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if constexpr (gated)
        value[i] = at_most(apply<f>(at_most(value[i], limits.gate)), limits.result) *
                   (at_least(at_most(up[i], limits.up), -limits.up) + limits.up_offset);
      else
        value[i] = apply<f>(value[i]);
    }
    store(value, y + r * y_stride + c);
  }
}

template <Activation f, bool gated>
void launch(ConstTensor x, const Limits& limits, Tensor y, Stream& stream) {
  const auto* from = static_cast<const __nv_bfloat16*>(x.data);
  auto* to = static_cast<__nv_bfloat16*>(y.data);
  const cudaStream_t queue = stream.cuda().stream;
  if (vectorizable(x) &&
      vectorizable(y))  // y.cols a multiple of eight: the `up` half is aligned too
    activation_kernel<f, gated, 8><<<row_grid(y.rows, y.cols, 8), row_threads, 0, queue>>>(
        from, x.stride, limits, to, y.stride, y.rows, y.cols);
  else
    activation_kernel<f, gated, 1><<<row_grid(y.rows, y.cols, 1), row_threads, 0, queue>>>(
        from, x.stride, limits, to, y.stride, y.rows, y.cols);
  check_launch();
}

template <bool gated>
void choose(ConstTensor x, Activation f, const Limits& limits, Tensor y, Stream& stream) {
  if (y.size() == 0) return;
  switch (f) {
    case Activation::silu: return launch<Activation::silu, gated>(x, limits, y, stream);
    case Activation::gelu: return launch<Activation::gelu, gated>(x, limits, y, stream);
    case Activation::gelu_tanh: return launch<Activation::gelu_tanh, gated>(x, limits, y, stream);
    case Activation::relu: return launch<Activation::relu, gated>(x, limits, y, stream);
    case Activation::relu2: return launch<Activation::relu2, gated>(x, limits, y, stream);
    case Activation::quick_gelu: return launch<Activation::quick_gelu, gated>(x, limits, y, stream);
  }
}

template <int count, class Alpha>
__global__ __launch_bounds__(row_threads) void xielu_kernel(
    const __nv_bfloat16* x, std::int64_t x_stride, const Alpha* alpha_p, const Alpha* alpha_n,
    float beta, float eps, __nv_bfloat16* y, std::int64_t y_stride, std::int64_t rows,
    std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  const float positive = softplus(widen(*alpha_p));
  const float negative = beta + softplus(widen(*alpha_n));
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float value[count];
    load(x + r * x_stride + c, value);
#pragma unroll
    for (int i = 0; i < count; ++i)
      value[i] = value[i] > 0.0f ? positive * value[i] * value[i] + beta * value[i]
                                 : (expm1f(value[i] < eps ? value[i] : eps) - value[i]) * negative +
                                       beta * value[i];
    store(value, y + r * y_stride + c);
  }
}

template <class From, int count>
__global__ __launch_bounds__(row_threads) void embed_kernel(
    const std::int32_t* ids, const From* table, std::int64_t table_stride, float multiplier,
    __nv_bfloat16* y, std::int64_t y_stride, std::int64_t rows, std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float value[count];
    load(table + std::int64_t{ids[r]} * table_stride + c, value);
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] *= multiplier;
    store(value, y + r * y_stride + c);
  }
}

// to = alpha · from; with alpha = 1 a conversion.
template <class From, class To, int count>
__global__ __launch_bounds__(row_threads) void scale_kernel(const From* from,
                                                            std::int64_t from_stride, float alpha,
                                                            To* to, std::int64_t to_stride,
                                                            std::int64_t rows, std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float value[count];
    load(from + r * from_stride + c, value);
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] *= alpha;
    store(value, to + r * to_stride + c);
  }
}

template <class From, class To>
void launch_scale(ConstTensor from, float alpha, Tensor to, Stream& stream) {
  const auto* source = static_cast<const From*>(from.data);
  auto* target = static_cast<To*>(to.data);
  const cudaStream_t queue = stream.cuda().stream;
  if (vectorizable(from) && vectorizable(to))
    scale_kernel<From, To, 8><<<row_grid(to.rows, to.cols, 8), row_threads, 0, queue>>>(
        source, from.stride, alpha, target, to.stride, to.rows, to.cols);
  else
    scale_kernel<From, To, 1><<<row_grid(to.rows, to.cols, 1), row_threads, 0, queue>>>(
        source, from.stride, alpha, target, to.stride, to.rows, to.cols);
  check_launch();
}

template <class From>
void convert_from(ConstTensor from, Tensor to, Stream& stream) {
  switch (to.dtype) {
    case DType::f32: return launch_scale<From, float>(from, 1.0f, to, stream);
    case DType::f16: return launch_scale<From, __half>(from, 1.0f, to, stream);
    case DType::bf16: return launch_scale<From, __nv_bfloat16>(from, 1.0f, to, stream);
    default: require(false, "convert: the types must be F32, F16 or BF16");
  }
}

template <class From>
void launch_embed(Matrix<const std::int32_t> ids, ConstTensor table, float multiplier, Tensor y,
                  Stream& stream) {
  const auto* from = static_cast<const From*>(table.data);
  auto* to = static_cast<__nv_bfloat16*>(y.data);
  const cudaStream_t queue = stream.cuda().stream;
  if (vectorizable(table) && vectorizable(y))
    embed_kernel<From, 8><<<row_grid(y.rows, y.cols, 8), row_threads, 0, queue>>>(
        ids.data, from, table.stride, multiplier, to, y.stride, y.rows, y.cols);
  else
    embed_kernel<From, 1><<<row_grid(y.rows, y.cols, 1), row_threads, 0, queue>>>(
        ids.data, from, table.stride, multiplier, to, y.stride, y.rows, y.cols);
  check_launch();
}

}  // namespace

void gated_activation(ConstTensor gate_up, Activation f, const GatedLimits& limits, Tensor y,
                      Stream& stream) {
  choose<true>(gate_up, f, limits_of(limits), y, stream);
}

void activation(ConstTensor x, Activation f, Tensor y, Stream& stream) {
  choose<false>(x, f, {}, y, stream);
}

void xielu(ConstTensor x, ConstTensor alpha_p, ConstTensor alpha_n, float beta, float eps, Tensor y,
           Stream& stream) {
  if (y.size() == 0) return;
  with_elements(alpha_p, [&](const auto* p) {
    using Alpha = decltype(p);
    with_count(vectorizable(x) && vectorizable(y), [&](auto count) {
      xielu_kernel<decltype(count)::value>
          <<<row_grid(y.rows, y.cols, count), row_threads, 0, stream.cuda().stream>>>(
              static_cast<const __nv_bfloat16*>(x.data), x.stride, p,
              static_cast<Alpha>(alpha_n.data), beta, eps, static_cast<__nv_bfloat16*>(y.data),
              y.stride, y.rows, y.cols);
    });
  });
  check_launch();
}

void embed(Matrix<const std::int32_t> ids, ConstTensor table, float multiplier, Tensor y,
           Stream& stream) {
  if (y.size() == 0) return;
  switch (table.dtype) {
    case DType::f32: return launch_embed<float>(ids, table, multiplier, y, stream);
    case DType::f16: return launch_embed<__half>(ids, table, multiplier, y, stream);
    case DType::bf16: return launch_embed<__nv_bfloat16>(ids, table, multiplier, y, stream);
    default: require(false, "embed: the table must be F32, F16 or BF16");
  }
}

void convert(ConstTensor from, Tensor to, Stream& stream) {
  if (to.size() == 0) return;
  switch (from.dtype) {
    case DType::f32: return convert_from<float>(from, to, stream);
    case DType::f16: return convert_from<__half>(from, to, stream);
    case DType::bf16: return convert_from<__nv_bfloat16>(from, to, stream);
    default: require(false, "convert: the types must be F32, F16 or BF16");
  }
}

void scale(Tensor x, float alpha, Stream& stream) {
  if (x.size() == 0) return;
  switch (x.dtype) {
    case DType::f32: return launch_scale<float, float>(x, alpha, x, stream);
    case DType::bf16: return launch_scale<__nv_bfloat16, __nv_bfloat16>(x, alpha, x, stream);
    default: require(false, "scale: on CUDA x must be F32 or BF16");
  }
}

}  // namespace qpipe::cuda
