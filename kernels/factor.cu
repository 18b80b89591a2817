#include <cublas_v2.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include "kernels/cuda_handles.h"
#include "kernels/factor.h"

namespace qpipe::cuda {

FactorVariant factor_variant;  // EXPERIMENT

namespace {

constexpr int edge = 32;
constexpr int edge_rows = 8;
constexpr int leaf = 128;          // columns that one thread block factors
constexpr int sub = 32;            // columns that one warp factors
constexpr int pitch = leaf + 4;    // rows in shared memory: aligned for float4, eight neighbouring rows in different banks
constexpr int leaf_threads = 384;  // two warps for each 32 x 32 block of the first update
constexpr int solve_rows = 64;
constexpr int solve_threads = 128;
constexpr std::size_t leaf_shared_bytes = sizeof(float) * leaf * pitch;
constexpr std::size_t solve_shared_bytes = sizeof(float) * (leaf + solve_rows) * pitch;  // 99 KiB: what every GPU from sm_80 on has

struct Half {
  using Type = __half;
  static constexpr cudaDataType_t type = CUDA_R_16F;
  static constexpr cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  static constexpr int parts = 2;
  static constexpr int copies = 4;
  static constexpr unsigned order = 0x0010u;  // digit c
  static __device__ Type narrow(float x) { return __float2half_rn(x); }
  static __device__ float widen(Type x) { return __half2float(x); }
};

struct Brain {
  using Type = __nv_bfloat16;
  static constexpr cudaDataType_t type = CUDA_R_16BF;
  static constexpr cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  static constexpr int parts = 3;
  static constexpr int copies = 7;
  static constexpr unsigned order = 0x0011020u;
  static __device__ Type narrow(float x) { return __float2bfloat16_rn(x); }
  static __device__ float widen(Type x) { return __bfloat162float(x); }
};

struct Tensor32 {
  using Type = float;
  static constexpr cudaDataType_t type = CUDA_R_32F;
  static constexpr cublasComputeType_t compute = CUBLAS_COMPUTE_32F_FAST_TF32;
  static constexpr int parts = 2;
  static constexpr int copies = 4;
  static constexpr unsigned order = 0x0010u;  // digit c
  static __device__ Type narrow(float x) {
    unsigned bits = 0;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
  }
  static __device__ float widen(Type x) { return x; }
};

// scale[k]: the power of two that brings entry (k, k) of the permuted, damped matrix into [2^28, 2^30); 1 where it is no positive number.
__global__ void choose_scales(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<float> scale) {
  const std::int64_t k = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k >= scale.cols) return;
  const float value = h.data[perm.data[k] * (h.stride + 1)];
  const auto damped = static_cast<float>((value == 0.0f ? 1.0 : static_cast<double>(value)) + damp);
  scale.data[k] = damped > 0.0f && isfinite(damped) ? ldexpf(1.0f, 14 - (ilogbf(damped) >> 1)) : 1.0f;
}

// Lower triangle of the reversed, permuted, scaled matrix: a[i, j] = h[perm[d−1−i], perm[d−1−j]] · scale[d−1−i] · scale[d−1−j].
__global__ void gather_reversed(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<const float> scale,
                                Matrix<float> a) {
  const std::int64_t d = a.rows;
  const std::int64_t j = std::int64_t{blockIdx.x} * edge + threadIdx.x;
  if (blockIdx.x > blockIdx.y || j >= d) return;
  const std::int64_t column = perm.data[d - 1 - j];
  const float column_scale = scale.data[d - 1 - j];
  for (int r = threadIdx.y; r < edge; r += edge_rows) {
    const std::int64_t i = std::int64_t{blockIdx.y} * edge + r;
    if (i >= d || j > i) continue;
    float value = h.data[perm.data[d - 1 - i] * h.stride + column];
    if (i == j) value = static_cast<float>((value == 0.0f ? 1.0 : static_cast<double>(value)) + damp);
    a.data[i * a.stride + j] = value * scale.data[d - 1 - i] * column_scale;
  }
}

// The four consecutive values of a row in shared memory.
__device__ float4 four(const float* row) { return *reinterpret_cast<const float4*>(row); }

// a ← L in the lower triangle of a [w, w], w ≤ 128; inverse[32 b + i, j] ← (L_bb)⁻¹_ij of the four 32 x 32 blocks on the diagonal.
// Nothing is checked: a pivot that is not positive makes NaN, and NaN reaches the pivots of all rows below.
__global__ __launch_bounds__(leaf_threads) void factor_leaf(Matrix<float> a, float* inverse) {
  extern __shared__ __align__(16) float shared[];
  __shared__ __align__(16) float transposed[sub][sub + 4];
  __shared__ float reciprocal[leaf];
  const auto t = reinterpret_cast<float(*)[pitch]>(shared);
  const int width = static_cast<int>(a.rows);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
#pragma unroll 8
  for (int index = threadIdx.x; index < leaf * leaf; index += leaf_threads) {
    const int i = index / leaf;
    const int j = index % leaf;
    if (j <= i) t[i][j] = i < width ? a.data[i * a.stride + j] : (i == j ? 1.0f : 0.0f);
  }
  __syncthreads();

  for (int b = 0; b < leaf; b += sub) {
    if (warp == 0) {  // lane i has row i of the block
      float row[sub];
#pragma unroll
      for (int k = 0; k < sub; k += 4) {
        const float4 v = four(&t[b + lane][b + k]);
        row[k] = v.x;
        row[k + 1] = v.y;
        row[k + 2] = v.z;
        row[k + 3] = v.w;
      }
#pragma unroll
      for (int k = 0; k < sub; ++k) {
        const float root = sqrtf(__shfl_sync(0xffffffffu, row[k], k));
        const float l = lane == k ? root : (lane > k ? row[k] / root : 0.0f);
        row[k] = l;
        if (lane == k) reciprocal[b + k] = 1.0f / root;
#pragma unroll
        for (int j = k + 1; j < sub; ++j) row[j] -= l * __shfl_sync(0xffffffffu, l, j);
      }
#pragma unroll
      for (int k = 0; k < sub; ++k) {
        t[b + lane][b + k] = row[k];
        transposed[k][lane] = row[k];
      }
    }
    __syncthreads();

    const int below = b + sub;
    if (threadIdx.x < leaf - below) {  // each thread one row: x Lᵀ = a
      float x[sub];
      float* row = &t[below + threadIdx.x][b];
#pragma unroll
      for (int k = 0; k < sub; k += 4) {
        const float4 v = four(row + k);
        x[k] = v.x;
        x[k + 1] = v.y;
        x[k + 2] = v.z;
        x[k + 3] = v.w;
      }
#pragma unroll
      for (int k = 0; k < sub; ++k) {
        x[k] *= reciprocal[b + k];
#pragma unroll
        for (int j = (k + 1) / 4 * 4; j < sub; j += 4) {
          const float4 v = four(&transposed[k][j]);
          if (j > k) x[j] -= x[k] * v.x;
          if (j + 1 > k) x[j + 1] -= x[k] * v.y;
          if (j + 2 > k) x[j + 2] -= x[k] * v.z;
          x[j + 3] -= x[k] * v.w;
        }
      }
#pragma unroll
      for (int k = 0; k < sub; k += 4) *reinterpret_cast<float4*>(row + k) = make_float4(x[k], x[k + 1], x[k + 2], x[k + 3]);
    }
    __syncthreads();

    // Lower 32 x 32 blocks of what is left, two warps each, 4 x 4 elements a thread.
    const int blocks = (leaf - below) / sub;
    const int block = warp / 2;
    if (block < blocks * (blocks + 1) / 2) {
      const int block_row = block >= 3 ? 2 : (block >= 1 ? 1 : 0);
      const int block_column = block - block_row * (block_row + 1) / 2;
      const int i = below + sub * block_row + threadIdx.x % 64 / 8;
      const int j = below + sub * block_column + threadIdx.x % 8;
      float sum[4][4] = {};
#pragma unroll
      for (int k = 0; k < sub; k += 4) {
        float4 left[4];
        float4 right[4];
        for (int r = 0; r < 4; ++r) left[r] = four(&t[i + 8 * r][b + k]);
        for (int c = 0; c < 4; ++c) right[c] = four(&t[j + 8 * c][b + k]);
        for (int r = 0; r < 4; ++r)
          for (int c = 0; c < 4; ++c) {
            sum[r][c] += left[r].x * right[c].x;
            sum[r][c] += left[r].y * right[c].y;
            sum[r][c] += left[r].z * right[c].z;
            sum[r][c] += left[r].w * right[c].w;
          }
      }
      for (int r = 0; r < 4; ++r)
        for (int c = 0; c < 4; ++c) t[i + 8 * r][j + 8 * c] -= sum[r][c];
    }
    __syncthreads();
  }

  if (warp < leaf / sub) {  // lane j has column j of the inverse
    const int b = warp * sub;
    float y[sub];
#pragma unroll
    for (int i = 0; i < sub; ++i) {
      float sum = i == lane ? 1.0f : 0.0f;
#pragma unroll
      for (int k = 0; k < i; k += 4) {
        const float4 v = four(&t[b + i][b + k]);
        sum -= v.x * y[k];
        if (k + 1 < i) sum -= v.y * y[k + 1];
        if (k + 2 < i) sum -= v.z * y[k + 2];
        if (k + 3 < i) sum -= v.w * y[k + 3];
      }
      y[i] = sum * reciprocal[b + i];
      inverse[(b + i) * sub + lane] = y[i];
    }
  }
#pragma unroll 8
  for (int index = threadIdx.x; index < leaf * leaf; index += leaf_threads) {
    const int i = index / leaf;
    const int j = index % leaf;
    if (j <= i && i < width) a.data[i * a.stride + j] = t[i][j];
  }
}

template <class Split>
struct Parts {  // of 128 columns: part p of them starts at order-th copy, `distance` apart
  typename Split::Type* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t distance = 0;
  std::int64_t first_row = 0;  // of x
};

template <class Split>
__device__ void store_parts(const Parts<Split>& to, std::int64_t row, int column, float value) {
  if (to.data == nullptr || row < to.first_row) return;
  typename Split::Type part[Split::parts];
  float rest = value;
#pragma unroll
  for (int p = 0; p < Split::parts; ++p) {
    part[p] = Split::narrow(rest);
    rest -= Split::widen(part[p]);
  }
  typename Split::Type* out = to.data + (row - to.first_row) * to.stride + column;
#pragma unroll
  for (int c = 0; c < Split::copies; ++c) out[c * to.distance] = part[Split::order >> (4 * c) & 15u];
}

// x ← x L⁻ᵀ, 64 rows a thread block; L [128, 128] with the inverses of its 32 x 32 diagonal blocks. x goes out as float32 and as parts.
template <class Split>
__global__ __launch_bounds__(solve_threads) void solve_panel(Matrix<const float> l, const float* inverse, Matrix<float> x,
                                                             Parts<Split> outer, Parts<Split> inner) {
  extern __shared__ __align__(16) float shared[];
  const auto t = reinterpret_cast<float(*)[pitch]>(shared);
  const auto y = reinterpret_cast<float(*)[pitch]>(shared + leaf * pitch);
  const std::int64_t row0 = std::int64_t{blockIdx.x} * solve_rows;
  const int rows = static_cast<int>(min(std::int64_t{solve_rows}, x.rows - row0));
#pragma unroll 8
  for (int i = 0; i < leaf; ++i) {
    const int j = threadIdx.x;
    if (j / sub == i / sub)
      t[i][j] = inverse[i * sub + j % sub];
    else if (j < i)
      t[i][j] = l.data[i * l.stride + j];
  }
#pragma unroll 8
  for (int i = 0; i < solve_rows; ++i) y[i][threadIdx.x] = i < rows ? x.data[(row0 + i) * x.stride + threadIdx.x] : 0.0f;
  __syncthreads();

  const int i = threadIdx.x / 8 * 4;  // a warp reads and writes rows of its own only
  const int j = threadIdx.x % 8;
  for (int b = 0; b < leaf; b += sub) {
    float sum[4][4];
    for (int r = 0; r < 4; ++r)
      for (int c = 0; c < 4; ++c) sum[r][c] = 0.0f;
    const auto add_products = [&](int from, int to) {
#pragma unroll 4
      for (int k = from; k < to; k += 4) {
        float4 left[4];
        float4 right[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) left[r] = four(&y[i + r][k]);
#pragma unroll
        for (int c = 0; c < 4; ++c) right[c] = four(&t[b + j + 8 * c][k]);
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            sum[r][c] += left[r].x * right[c].x;
            sum[r][c] += left[r].y * right[c].y;
            sum[r][c] += left[r].z * right[c].z;
            sum[r][c] += left[r].w * right[c].w;
          }
      }
    };
    add_products(0, b);
    for (int r = 0; r < 4; ++r)
      for (int c = 0; c < 4; ++c) {
        y[i + r][b + j + 8 * c] -= sum[r][c];
        sum[r][c] = 0.0f;
      }
    __syncwarp();
    add_products(b, b + sub);
    __syncwarp();
    for (int r = 0; r < 4; ++r)
      for (int c = 0; c < 4; ++c) y[i + r][b + j + 8 * c] = sum[r][c];
    __syncwarp();
  }
  __syncthreads();
  for (int r = 0; r < rows; ++r) {
    const float value = y[r][threadIdx.x];
    x.data[(row0 + r) * x.stride + threadIdx.x] = value;
    store_parts(outer, row0 + r, threadIdx.x, value);
    store_parts(inner, row0 + r, threadIdx.x, value);
  }
}

// c[i, j] −= Σ_k left[i, k] right[j, k] for `count` matrices c [rows, cols], each `step` rows and columns after the one before.
struct Product {
  cublasHandle_t cublas;
  const void* left;
  const void* right;
  cudaDataType_t type;
  std::int64_t element_bytes;
  std::int64_t stride;
  std::int64_t depth;
  cublasComputeType_t compute;

  void subtract(Matrix<float> c, std::int64_t i0, std::int64_t j0, std::int64_t rows, std::int64_t cols, std::int64_t step,
                std::int64_t count) const {
    if (rows <= 0 || cols <= 0 || count <= 0) return;
    const float minus_one = -1.0f;
    const float one = 1.0f;
    const auto* a = static_cast<const char*>(left) + i0 * stride * element_bytes;
    const auto* b = static_cast<const char*>(right) + j0 * stride * element_bytes;
    // Row-major [i, j] is column-major [j, i].
    check(cublasGemmStridedBatchedEx_64(cublas, CUBLAS_OP_T, CUBLAS_OP_N, cols, rows, depth, &minus_one, b, type, stride, step * stride, a,
                                        type, stride, step * stride, &one, c.row(i0) + j0, CUDA_R_32F, c.stride, step * (c.stride + 1),
                                        count, compute, CUBLAS_GEMM_DEFAULT));
  }

  // The lower triangle of c [m, m]: squares of `base` on the diagonal, then left of them squares of base, 2 base, 4 base, …
  void subtract_lower(Matrix<float> c, std::int64_t base) const {
    const std::int64_t m = c.rows;
    const std::int64_t whole = m / base * base;
    subtract(c, 0, 0, base, base, base, m / base);
    subtract(c, whole, whole, m - whole, m - whole, 0, 1);
    for (std::int64_t s = base; s < m; s *= 2) {
      const std::int64_t pairs = m / (2 * s);
      subtract(c, s, 0, s, s, 2 * s, pairs);
      const std::int64_t begin = pairs * 2 * s;
      subtract(c, begin + s, begin, m - begin - s, s, 0, 1);
    }
  }
};

struct Profile {
  bool on;
  cudaStream_t stream;
  std::vector<std::pair<int, cudaEvent_t>> events;
  void mark(int phase) {
    if (!on) return;
    cudaEvent_t e;
    cudaEventCreate(&e);
    cudaEventRecord(e, stream);
    events.push_back({phase, e});
  }
  ~Profile() {
    if (!on) return;
    cudaStreamSynchronize(stream);
    double total[4] = {};
    for (std::size_t i = 1; i < events.size(); ++i) {
      float ms = 0;
      cudaEventElapsedTime(&ms, events[i - 1].second, events[i].second);
      total[events[i].first] += ms;
    }
    std::printf("   leaf %.3f solve %.3f inner %.3f outer %.3f ms\n", total[0], total[1], total[2], total[3]);
    for (auto& e : events) cudaEventDestroy(e.second);
  }
};

template <class Split>
void cholesky(Matrix<float> a, Stream& stream) {
  const CudaHandles& handles = stream.cuda();
  const FactorVariant& variant = factor_variant;
  const std::int64_t d = a.rows;
  const std::int64_t nb = variant.nb;
  check(cudaFuncSetAttribute(factor_leaf, cudaFuncAttributeMaxDynamicSharedMemorySize, int{leaf_shared_bytes}));
  check(cudaFuncSetAttribute(solve_panel<Split>, cudaFuncAttributeMaxDynamicSharedMemorySize, int{solve_shared_bytes}));
  using Type = typename Split::Type;
  const Buffer outer(static_cast<std::size_t>(std::max<std::int64_t>(0, d - nb) * nb * Split::copies) * sizeof(Type), stream);
  const Buffer inner(static_cast<std::size_t>(std::max<std::int64_t>(0, d - leaf) * leaf * Split::copies) * sizeof(Type), stream);
  const Array<float> inverse(leaf, sub, stream);
  const auto part = [&](std::int64_t i, std::int64_t j, std::int64_t rows, std::int64_t cols) {
    return Matrix<float>(a.row(i) + j, rows, cols, a.stride);
  };
  Profile profile{variant.profile, handles.stream, {}};
  profile.mark(0);
  for (std::int64_t k0 = 0; k0 < d; k0 += nb) {
    const std::int64_t k1 = std::min(d, k0 + nb);
    for (std::int64_t j0 = k0; j0 < k1; j0 += leaf) {
      const std::int64_t j1 = std::min(k1, j0 + leaf);
      const Matrix<float> diagonal = part(j0, j0, j1 - j0, j1 - j0);
      factor_leaf<<<1, leaf_threads, leaf_shared_bytes, handles.stream>>>(diagonal, inverse.view.data);
      check_launch();
      profile.mark(0);
      if (j1 == d) break;
      Parts<Split> to_outer{static_cast<Type*>(outer.data()) + (j0 - k0), nb * Split::copies, nb, k1 - j1};
      Parts<Split> to_inner{static_cast<Type*>(inner.data()), leaf * Split::copies, leaf, 0};
      if (k1 == d || variant.emulated) to_outer.data = nullptr;
      if (!variant.inner_parts || j1 == k1) to_inner.data = nullptr;
      solve_panel<Split><<<static_cast<unsigned>((d - j1 + solve_rows - 1) / solve_rows), solve_threads, solve_shared_bytes,
                           handles.stream>>>(diagonal, inverse.view.data, part(j1, j0, d - j1, leaf), to_outer, to_inner);
      check_launch();
      profile.mark(1);
      if (j1 == k1) continue;
      const Matrix<float> rest = part(j1, j1, d - j1, k1 - j1);
      if (variant.inner_parts) {
        const Type* data = static_cast<const Type*>(inner.data());
        Product{handles.cublas, data + leaf, data, Split::type, sizeof(Type), leaf * Split::copies, leaf * (Split::copies - 1), Split::compute}
            .subtract(rest, 0, 0, d - j1, k1 - j1, 0, 1);
      } else {
        Product{handles.cublas, a.row(j1) + j0, a.row(j1) + j0, CUDA_R_32F, 4, a.stride, leaf, CUBLAS_COMPUTE_32F}.subtract(
            rest, 0, 0, d - j1, k1 - j1, 0, 1);
      }
      profile.mark(2);
    }
    if (k1 == d) break;
    const Matrix<float> rest = part(k1, k1, d - k1, d - k1);
    if (variant.emulated) {
      Product{handles.cublas, a.row(k1) + k0, a.row(k1) + k0, CUDA_R_32F, 4, a.stride, nb, CUBLAS_COMPUTE_32F_EMULATED_16BFX9}.subtract_lower(
          rest, variant.base);
    } else {
      const Type* data = static_cast<const Type*>(outer.data());
      Product{handles.cublas, data + nb, data, Split::type, sizeof(Type), nb * Split::copies, nb * (Split::copies - 1), Split::compute}
          .subtract_lower(rest, variant.base);
    }
    profile.mark(3);
  }
}

__global__ void take_pivots(Matrix<const float> l, Matrix<const float> scale, Matrix<float> pivot, int* failed) {
  const std::int64_t k = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k >= l.rows) return;
  const float value = l.data[(l.rows - 1 - k) * (l.stride + 1)] * (1.0f / scale.data[k]);
  pivot.data[k] = value;
  if (!(value > 0.0f) || !isfinite(value)) *failed = 1;
}

// In place: N[r, c] = L[d−1−r, d−1−c] / (scale[r] · pivot[c]) for r < c, 1 on the diagonal, 0 below it.
// (r, c) → (d−1−r, d−1−c) maps the strict upper triangle onto the strict lower one, so each thread owns both of its elements.
__global__ void reverse_and_normalise(Matrix<const float> pivot, Matrix<const float> scale, Matrix<float> a) {
  const std::int64_t d = a.rows;
  const std::int64_t c = std::int64_t{blockIdx.x} * edge + threadIdx.x;
  if (blockIdx.y > blockIdx.x || c >= d) return;
  const float column_pivot = pivot.data[c];
  for (int i = threadIdx.y; i < edge; i += edge_rows) {
    const std::int64_t r = std::int64_t{blockIdx.y} * edge + i;
    if (r > c) continue;
    float& upper = a.data[r * a.stride + c];
    if (r == c) {
      upper = 1.0f;
      continue;
    }
    float& lower = a.data[(d - 1 - r) * a.stride + (d - 1 - c)];
    upper = lower * (1.0f / scale.data[r]) / column_pivot;
    lower = 0.0f;
  }
}

}  // namespace

bool factor(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<float> n, Matrix<float> pivot, Stream& stream) {
  const std::int64_t d = h.rows;
  const CudaHandles& handles = stream.cuda();
  constexpr int threads = 256;
  const auto lines = static_cast<unsigned>((d + threads - 1) / threads);
  const auto tiles = static_cast<unsigned>((d + edge - 1) / edge);
  const Array<float> scale(1, d, stream);
  const Array<int> failed(1, 1, stream);
  fill_zero(failed.view.data, sizeof(int), stream);
  choose_scales<<<lines, threads, 0, handles.stream>>>(h, perm, damp, scale);
  check_launch();
  gather_reversed<<<dim3(tiles, tiles), dim3(edge, edge_rows), 0, handles.stream>>>(h, perm, damp, scale, n);
  check_launch();
  if (factor_variant.split == 0) cholesky<Half>(n, stream);
  if (factor_variant.split == 1) cholesky<Brain>(n, stream);
  if (factor_variant.split == 2) cholesky<Tensor32>(n, stream);
  take_pivots<<<lines, threads, 0, handles.stream>>>(n, scale, pivot, failed.view.data);
  check_launch();
  reverse_and_normalise<<<dim3(tiles, tiles), dim3(edge, edge_rows), 0, handles.stream>>>(pivot, scale, n);
  check_launch();
  int host_failed = 0;
  copy_to_host(&host_failed, failed.view.data, sizeof host_failed, stream);
  return host_failed == 0;
}

}  // namespace qpipe::cuda
