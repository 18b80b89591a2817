#include <cublas_v2.h>
#include <cuda_pipeline.h>

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
                                Matrix<float> a, Matrix<double> diagonal) {
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
    value *= scale.data[d - 1 - i] * column_scale;
    a.data[i * a.stride + j] = value;
    if (i == j) diagonal.data[i] = value;
  }
}

// The four consecutive values of a row in shared memory.
__device__ float4 four(const float* row) { return *reinterpret_cast<const float4*>(row); }

// a ← L in the lower triangle of a [w, w], w ≤ 128, whose diagonal is given apart; inverse[32 b + i, j] ← (L_bb)⁻¹_ij of the four 32 x 32 blocks
// on the diagonal. Nothing is checked: a pivot that is not positive makes NaN or infinity, and these reach the pivots of all rows below.
__global__ __launch_bounds__(leaf_threads) void factor_leaf(Matrix<float> a, const double* diagonal, float* inverse) {
  extern __shared__ __align__(16) float shared[];
  __shared__ __align__(16) float transposed[sub][sub + 4];
  __shared__ float reciprocal[leaf];
  const auto t = reinterpret_cast<float(*)[pitch]>(shared);
  const int width = static_cast<int>(a.rows);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  for (int index = threadIdx.x; index < leaf * leaf; index += leaf_threads) {
    const int i = index / leaf;
    const int j = index % leaf;
    if (j < i && i < width)
      __pipeline_memcpy_async(&t[i][j], &a.data[i * a.stride + j], sizeof(float));
    else if (j <= i)
      t[i][j] = j < i ? 0.0f : (i < width ? static_cast<float>(diagonal[i]) : 1.0f);
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
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
      // Every lane follows all pivots, so that the next one needs no exchange; the same operations as in its own row, so the same bits.
      float pivot[sub];
#pragma unroll
      for (int k = 0; k < sub; ++k) pivot[k] = t[b + k][b + k];
#pragma unroll
      for (int k = 0; k < sub; ++k) {
        const float guess = rsqrtf(pivot[k]);
        const float inverse_root = guess + 0.5f * guess * (1.0f - pivot[k] * guess * guess);  // a Newton step
        const float l = lane >= k ? row[k] * inverse_root : 0.0f;
        row[k] = l;
        if (lane == k) reciprocal[b + k] = inverse_root;
#pragma unroll
        for (int j = k + 1; j < sub; ++j) {
          const float l_j = __shfl_sync(0xffffffffu, l, j);
          row[j] -= l * l_j;
          pivot[j] -= l_j * l_j;
        }
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

// Where the parts of 128 columns go: hi, lo, hi, hi, `distance` apart; rows before first_row do not.
struct Parts {
  __half* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t distance = 0;
  std::int64_t first_row = 0;
};

// x ← x L⁻ᵀ, 64 rows a thread block; L [128, 128] with the inverses of its 32 x 32 diagonal blocks. diagonal[i] −= Σ_k x[i, k]².
__global__ __launch_bounds__(solve_threads) void solve_panel(Matrix<const float> l, const float* inverse, Matrix<float> x, double* diagonal,
                                                             Parts parts) {
  extern __shared__ __align__(16) float shared[];
  const auto t = reinterpret_cast<float(*)[pitch]>(shared);
  const auto y = reinterpret_cast<float(*)[pitch]>(shared + leaf * pitch);
  const std::int64_t row0 = std::int64_t{blockIdx.x} * solve_rows;
  const int rows = static_cast<int>(min(std::int64_t{solve_rows}, x.rows - row0));
  const int column = threadIdx.x;
  for (int i = 0; i < leaf; ++i) {
    if (column / sub == i / sub)
      __pipeline_memcpy_async(&t[i][column], &inverse[i * sub + column % sub], sizeof(float));
    else if (column < i)
      __pipeline_memcpy_async(&t[i][column], &l.data[i * l.stride + column], sizeof(float));
  }
  for (int i = 0; i < solve_rows; ++i) {
    if (i < rows)
      __pipeline_memcpy_async(&y[i][column], &x.data[(row0 + i) * x.stride + column], sizeof(float));
    else
      y[i][column] = 0.0f;
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
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
  for (int r = 0; r < rows; ++r) x.data[(row0 + r) * x.stride + column] = y[r][column];
  if (threadIdx.x < rows) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
    for (int k = 0; k < leaf; k += 4) {
      const float4 v = four(&y[threadIdx.x][k]);
      sum.x += v.x * v.x;
      sum.y += v.y * v.y;
      sum.z += v.z * v.z;
      sum.w += v.w * v.w;
    }
    diagonal[row0 + threadIdx.x] -= static_cast<double>((sum.x + sum.y) + (sum.z + sum.w));
  }
  if (parts.data == nullptr) return;
#pragma unroll 4
  for (int r = threadIdx.x / 32; r < rows; r += solve_threads / 32) {
    if (row0 + r < parts.first_row) continue;
    const int k = threadIdx.x % 32 * 4;
    const float4 v = four(&y[r][k]);
    union {
      __half half[4];
      uint2 word;
    } hi, lo;
    const float value[4] = {v.x, v.y, v.z, v.w};
    for (int c = 0; c < 4; ++c) {
      hi.half[c] = __float2half_rn(value[c]);
      lo.half[c] = __float2half_rn(value[c] - __half2float(hi.half[c]));
    }
    __half* out = parts.data + (row0 + r - parts.first_row) * parts.stride + k;
    *reinterpret_cast<uint2*>(out) = hi.word;
    *reinterpret_cast<uint2*>(out + parts.distance) = lo.word;
    *reinterpret_cast<uint2*>(out + 2 * parts.distance) = hi.word;
    *reinterpret_cast<uint2*>(out + 3 * parts.distance) = hi.word;
  }
}

struct Product {
  cublasHandle_t cublas;
  const __half* parts;
  std::int64_t stride;
  std::int64_t chunk;
  std::int64_t chunks;
  float alpha;

  // Chunk after chunk, each added to c in float32.
  void subtract(Matrix<float> c, std::int64_t i0, std::int64_t j0, std::int64_t rows, std::int64_t cols, std::int64_t step = 0,
                std::int64_t count = 1) const {
    if (rows <= 0 || cols <= 0 || count <= 0) return;
    const float one = 1.0f;
    for (std::int64_t k = 0; k < chunks; ++k) {
      const __half* right = parts + 4 * k * chunk + j0 * stride;
      const __half* left = parts + 4 * k * chunk + chunk + i0 * stride;
      check(cublasGemmStridedBatchedEx_64(cublas, CUBLAS_OP_T, CUBLAS_OP_N, cols, rows, 3 * chunk, &alpha, right, CUDA_R_16F, stride,
                                          step * stride, left, CUDA_R_16F, stride, step * stride, &one, c.row(i0) + j0, CUDA_R_32F, c.stride,
                                          step * (c.stride + 1), count, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    }
  }

  void subtract_lower(Matrix<float> c, std::int64_t base, std::int64_t height) const {
    const std::int64_t m = c.rows;
    if (height > 0) {  // strips of `base` columns, cut into blocks of `height` rows
      for (std::int64_t j = 0; j < m; j += base)
        for (std::int64_t i = j; i < m; i += height) subtract(c, i, j, std::min(height, m - i), std::min(base, m - j));
      return;
    }
    const std::int64_t whole = m / base * base;
    subtract(c, 0, 0, base, base, base, m / base);
    subtract(c, whole, whole, m - whole, m - whole);
    for (std::int64_t s = base; s < m; s *= 2) {
      const std::int64_t pairs = m / (2 * s);
      subtract(c, s, 0, s, s, 2 * s, pairs);
      const std::int64_t begin = pairs * 2 * s;
      subtract(c, begin + s, begin, m - begin - s, s);
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

void cholesky(Matrix<float> a, double* diagonal, Stream& stream) {
  const CudaHandles& handles = stream.cuda();
  const FactorVariant& variant = factor_variant;
  const std::int64_t d = a.rows;
  const std::int64_t nb = variant.nb;
  check(cudaFuncSetAttribute(factor_leaf, cudaFuncAttributeMaxDynamicSharedMemorySize, int{leaf_shared_bytes}));
  check(cudaFuncSetAttribute(solve_panel, cudaFuncAttributeMaxDynamicSharedMemorySize, int{solve_shared_bytes}));
  const Array<std::uint16_t> parts(std::max<std::int64_t>(0, d - nb), 4 * nb, stream);
  auto* const half = reinterpret_cast<__half*>(parts.view.data);
  const Array<float> inverse(leaf, sub, stream);
  const auto part = [&](std::int64_t i, std::int64_t j, std::int64_t rows, std::int64_t cols) {
    return Matrix<float>(a.row(i) + j, rows, cols, a.stride);
  };
  Profile profile{variant.profile, handles.stream, {}};
  profile.mark(0);
  const float minus_one = -1.0f;
  const float one = 1.0f;
  for (std::int64_t k0 = 0; k0 < d; k0 += nb) {
    const std::int64_t k1 = std::min(d, k0 + nb);
    for (std::int64_t j0 = k0; j0 < k1; j0 += leaf) {
      const std::int64_t j1 = std::min(k1, j0 + leaf);
      const Matrix<float> block = part(j0, j0, j1 - j0, j1 - j0);
      factor_leaf<<<1, leaf_threads, leaf_shared_bytes, handles.stream>>>(block, diagonal + j0, inverse.view.data);
      check_launch();
      profile.mark(0);
      if (j1 == d) break;
      const std::int64_t chunk = (j0 - k0) / variant.chunk;
      Parts to{half + 4 * chunk * variant.chunk + (j0 - k0) % variant.chunk, 4 * nb, variant.chunk, k1 - j1};
      if (k1 == d) to.data = nullptr;
      solve_panel<<<static_cast<unsigned>((d - j1 + solve_rows - 1) / solve_rows), solve_threads, solve_shared_bytes, handles.stream>>>(
          block, inverse.view.data, part(j1, j0, d - j1, leaf), diagonal + j1, to);
      check_launch();
      profile.mark(1);
      if (j1 < k1)
        check(cublasSgemm_64(handles.cublas, CUBLAS_OP_T, CUBLAS_OP_N, k1 - j1, d - j1, leaf, &minus_one, a.row(j1) + j0, a.stride,
                             a.row(j1) + j0, a.stride, &one, a.row(j1) + j1, a.stride));
      profile.mark(2);
    }
    if (k1 == d) break;
    Product{handles.cublas, half, 4 * nb, variant.chunk, nb / variant.chunk, -(1.0f + static_cast<float>(variant.debias) * 0x1p-23f)}
        .subtract_lower(part(k1, k1, d - k1, d - k1), variant.base, variant.height);
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
  const Array<double> diagonal(1, d, stream);
  const Array<int> failed(1, 1, stream);
  fill_zero(failed.view.data, sizeof(int), stream);
  choose_scales<<<lines, threads, 0, handles.stream>>>(h, perm, damp, scale);
  check_launch();
  gather_reversed<<<dim3(tiles, tiles), dim3(edge, edge_rows), 0, handles.stream>>>(h, perm, damp, scale, n, diagonal);
  check_launch();
  cholesky(n, diagonal.view.data, stream);
  take_pivots<<<lines, threads, 0, handles.stream>>>(n, scale, pivot, failed.view.data);
  check_launch();
  reverse_and_normalise<<<dim3(tiles, tiles), dim3(edge, edge_rows), 0, handles.stream>>>(pivot, scale, n);
  check_launch();
  int host_failed = 0;
  copy_to_host(&host_failed, failed.view.data, sizeof host_failed, stream);
  return host_failed == 0;
}

}  // namespace qpipe::cuda
