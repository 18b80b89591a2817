#include "kernels/expert_rows.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr unsigned all_lanes = 0xffffffffu;

// Over the lanes of a warp, in a fixed order; all lanes have the result.
template <class T>
__device__ T sum_over_warp(T x) {
  for (int step = warp / 2; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}

constexpr int sort_warps = 32;

// Block e writes the rows of expert e, and one block more the end of the list. Each warp has one
// range of the pairs; it counts in it, and writes where those of earlier warps end.
__global__ __launch_bounds__(warp* sort_warps) void sort_kernel(const std::int32_t* expert,
                                                                std::int64_t pairs,
                                                                std::int32_t* begin,
                                                                std::int32_t* source,
                                                                std::int32_t* place) {
  const int e = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int w = static_cast<int>(threadIdx.x) / warp;
  const std::int64_t share = (pairs + sort_warps * warp - 1) / (sort_warps * warp) * warp;
  const std::int64_t first = min(pairs, w * share);
  const std::int64_t end = min(pairs, first + share);

  int less = 0;
  int equal = 0;
#pragma unroll 4
  for (std::int64_t i = first + lane; i < end; i += warp) {
    const std::int32_t x = expert[i];
    less += x < e ? 1 : 0;
    equal += x == e ? 1 : 0;
  }
  less = sum_over_warp(less);
  equal = sum_over_warp(equal);
  __shared__ int less_in[sort_warps];
  __shared__ int equal_in[sort_warps];
  if (lane == 0) {
    less_in[w] = less;
    equal_in[w] = equal;
  }
  __syncthreads();
  int row = 0;
  for (int i = 0; i < sort_warps; ++i) row += less_in[i] + (i < w ? equal_in[i] : 0);
  if (threadIdx.x == 0) begin[e] = row;
  if (equal == 0) return;  // a whole warp; there are no more barriers

#pragma unroll 4
  for (std::int64_t i = first; i < end; i += warp) {
    const bool mine = i + lane < end && expert[i + lane] == e;
    const unsigned lanes = __ballot_sync(all_lanes, mine);
    if (mine) {
      const int r = row + __popc(lanes & ((1u << lane) - 1));
      source[r] = static_cast<std::int32_t>(i + lane);
      place[i + lane] = r;
    }
    row += __popc(lanes);
  }
}

// y[r] = weight · x[source[r] / k]
template <int count, class From, class To>
__global__ __launch_bounds__(row_threads) void gather_kernel(const From* x, std::int64_t x_stride,
                                                             const std::int32_t* source,
                                                             std::int32_t k, const float* weight,
                                                             std::int64_t weight_stride, To* y,
                                                             std::int64_t y_stride,
                                                             std::int64_t rows, std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const std::int32_t t = source[r] / k;
    float value[count];
    load(x + t * x_stride + c, value);
    if (weight != nullptr) {
      const float factor = weight[t * weight_stride + (source[r] - t * k)];
#pragma unroll
      for (int i = 0; i < count; ++i) value[i] *= factor;
    }
    store(value, y + r * y_stride + c);
  }
}

struct Slots {
  const std::int32_t* place;
  std::int64_t place_stride;
  const float* weight;  // may be null, as shared_weight
  std::int64_t weight_stride;
  const float* shared_weight;
  std::int64_t shared_weight_stride;
  std::int64_t k;
};

// z[t] = Σ_s weight · y[place[t, s]] + shared_weight · shared[t]. Every thread reads its elements
// of shared before it writes them: z may be shared.
template <int count, class From, class Shared, class To>
__global__ __launch_bounds__(row_threads) void combine_kernel(const From* y, std::int64_t y_stride,
                                                              Slots slots, const Shared* shared,
                                                              std::int64_t shared_stride, To* z,
                                                              std::int64_t z_stride,
                                                              std::int64_t rows,
                                                              std::int64_t cols) {
  const std::int64_t c = first_column(count);
  if (c >= cols) return;
  for (std::int64_t t = blockIdx.y; t < rows; t += gridDim.y) {
    float sum[count] = {};
    float term[count];
    for (std::int64_t s = 0; s < slots.k; ++s) {
      const std::int64_t row = slots.place[t * slots.place_stride + s];
      const float factor =
          slots.weight == nullptr ? 1.0f : slots.weight[t * slots.weight_stride + s];
      load(y + row * y_stride + c, term);
#pragma unroll
      for (int i = 0; i < count; ++i) sum[i] = fmaf(factor, term[i], sum[i]);
    }
    if (shared != nullptr) {
      const float factor = slots.shared_weight == nullptr
                               ? 1.0f
                               : slots.shared_weight[t * slots.shared_weight_stride];
      load(shared + t * shared_stride + c, term);
#pragma unroll
      for (int i = 0; i < count; ++i) sum[i] = fmaf(factor, term[i], sum[i]);
    }
    store(sum, z + t * z_stride + c);
  }
}

// operation(pointer to the elements) for activations: bf16 or float32.
template <class Void, class Operation>
void with_activations(const AnyMatrix<Void>& x, Operation operation) {
  using Float = std::conditional_t<std::is_const_v<Void>, const float, float>;
  using Brain = std::conditional_t<std::is_const_v<Void>, const __nv_bfloat16, __nv_bfloat16>;
  if (x.dtype == DType::bf16)
    operation(static_cast<Brain*>(x.data));
  else
    operation(static_cast<Float*>(x.data));
}

constexpr int gate_warps = 8;

// One warp a row. Lane l has the elements with (i / 8) mod 32 = l, whether it loads them together
// or one by one, so that the sum is the same.
template <bool vectors>
__global__ __launch_bounds__(warp* gate_warps) void row_gate_kernel(
    const __nv_bfloat16* x, std::int64_t x_stride, const __nv_bfloat16* w, std::int64_t d, float* g,
    std::int64_t g_stride, std::int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const std::int64_t t = std::int64_t{blockIdx.x} * gate_warps + threadIdx.x / warp;
  if (t >= rows) return;  // a whole warp
  const __nv_bfloat16* row = x + t * x_stride;
  float part = 0.0f;
  for (std::int64_t i = lane * vector_elements; i < d; i += warp * vector_elements) {
    if constexpr (vectors) {
      float a[vector_elements];
      float b[vector_elements];
      load(row + i, a);
      load(w + i, b);
#pragma unroll
      for (int j = 0; j < vector_elements; ++j) part = fmaf(a[j], b[j], part);
    } else {
      for (std::int64_t j = i; j < min(d, i + vector_elements); ++j)
        part = fmaf(widen(row[j]), widen(w[j]), part);
    }
  }
  part = sum_over_warp(part);
  if (lane == 0) g[t * g_stride] = 1.0f / (1.0f + expf(-part));
}

}  // namespace

void sort_by_expert(Matrix<const std::int32_t> expert, std::int64_t experts,
                    Matrix<std::int32_t> begin, Matrix<std::int32_t> source,
                    Matrix<std::int32_t> place, Stream& stream) {
  sort_kernel<<<static_cast<unsigned>(experts + 1), warp * sort_warps, 0, stream.cuda().stream>>>(
      expert.data, expert.size(), begin.data, source.data, place.data);
  check_launch();
}

void gather_rows(ConstTensor x, Matrix<const std::int32_t> source, std::int64_t k,
                 Matrix<const float> weight, Tensor y, Stream& stream) {
  if (y.size() == 0) return;
  with_activations(x, [&](const auto* from) {
    with_activations(y, [&](auto* to) {
      with_count(vectorizable(x) && vectorizable(y), [&](auto count) {
        gather_kernel<decltype(count)::value>
            <<<row_grid(y.rows, y.cols, count), row_threads, 0, stream.cuda().stream>>>(
                from, x.stride, source.data, static_cast<std::int32_t>(k), weight.data,
                weight.stride, to, y.stride, y.rows, y.cols);
      });
    });
  });
  check_launch();
}

void combine_rows(ConstTensor y, Matrix<const std::int32_t> place, Matrix<const float> weight,
                  ConstTensor shared, Matrix<const float> shared_weight, Tensor z, Stream& stream) {
  if (z.size() == 0) return;
  const Slots slots{place.data,         place.stride,         weight.data, weight.stride,
                    shared_weight.data, shared_weight.stride, place.cols};
  const bool vectors =
      vectorizable(y) && vectorizable(z) && (shared.empty() || vectorizable(shared));
  with_activations(y, [&](const auto* from) {
    with_activations(shared, [&](const auto* shared_rows) {
      with_activations(z, [&](auto* to) {
        with_count(vectors, [&](auto count) {
          combine_kernel<decltype(count)::value>
              <<<row_grid(z.rows, z.cols, count), row_threads, 0, stream.cuda().stream>>>(
                  from, y.stride, slots, shared_rows, shared.stride, to, z.stride, z.rows, z.cols);
        });
      });
    });
  });
  check_launch();
}

void row_gate(ConstTensor x, ConstTensor w, Matrix<float> g, Stream& stream) {
  if (g.size() == 0) return;
  const auto* from = static_cast<const __nv_bfloat16*>(x.data);
  const auto* row = static_cast<const __nv_bfloat16*>(w.data);
  const auto blocks = static_cast<unsigned>((x.rows + gate_warps - 1) / gate_warps);
  const cudaStream_t queue = stream.cuda().stream;
  if (vectorizable(x) && vectorizable(w))
    row_gate_kernel<true><<<blocks, warp * gate_warps, 0, queue>>>(from, x.stride, row, x.cols,
                                                                   g.data, g.stride, x.rows);
  else
    row_gate_kernel<false><<<blocks, warp * gate_warps, 0, queue>>>(from, x.stride, row, x.cols,
                                                                    g.data, g.stride, x.rows);
  check_launch();
}

}  // namespace qpipe::cuda
