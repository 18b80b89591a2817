#include <cublas_v2.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include "kernels/cholesky_cuda.h"
#include "kernels/copy_queue.h"
#include "kernels/cuda_handles.h"

namespace qpipe::cuda {

namespace {

constexpr int leaf = cholesky_leaf;
constexpr int sub = cholesky_sub;
constexpr int pitch =
    leaf +
    4;  // of rows in shared memory: aligned for float4, eight neighbouring rows in different banks
constexpr int leaf_threads = 384;  // two warps for each 32 x 32 block of the first update
constexpr int solve_rows = 64;
constexpr int solve_threads = leaf;
constexpr int leaf_shared_bytes = sizeof(float) * leaf * pitch;
constexpr int solve_shared_bytes =
    sizeof(float) * (leaf + solve_rows) * pitch;  // 99 KiB: what every GPU from sm_80 on has
constexpr std::int64_t depth = cholesky_block;    // columns in one product on tensor cores
constexpr std::int64_t parts_stride = 4 * cholesky_block;

// What tensor cores lose of the sum so far each time that they add a column: they add 16 at once,
// and truncate to 24 bits.
constexpr float truncation = 12.0f * 0x1p-32f;

// The four consecutive values of a row in shared memory.
__device__ float4 four(const float* row) { return *reinterpret_cast<const float4*>(row); }

// a ← L in the lower triangle of a [w, w], w ≤ 128, whose diagonal is given apart; inverse[32 b +
// i, j] ← (L_bb)⁻¹_ij of the four 32 x 32 blocks on the diagonal. One thread block.
__global__ __launch_bounds__(leaf_threads) void factor_leaf(Matrix<float> a, const double* diagonal,
                                                            float* inverse) {
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
      // Every lane follows all pivots, so that the next one needs no exchange between lanes.
      float pivot[sub];
#pragma unroll
      for (int k = 0; k < sub; ++k) pivot[k] = t[b + k][b + k];
#pragma unroll
      for (int k = 0; k < sub; ++k) {
        const float guess = rsqrtf(pivot[k]);
        const float inverse_root =
            guess + 0.5f * guess * (1.0f - pivot[k] * guess * guess);  // a Newton step
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
      __syncwarp();  // all lanes have read all pivots
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
      for (int k = 0; k < sub; k += 4)
        *reinterpret_cast<float4*>(row + k) = make_float4(x[k], x[k + 1], x[k + 2], x[k + 3]);
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

// Where hi, lo, hi, hi of 128 columns go, which begin at `column` of the 512; rows before first_row
// do not.
struct Parts {
  __half* data;
  std::int64_t column;
  std::int64_t first_row;
};

struct Halves {
  __half hi;
  __half lo;
};

// value as hi + lo, times 1 + loss / 2. Rounded alike in every kernel, hence the fma.
__device__ Halves split(float value, float loss) {
  const __half hi = __float2half_rn(value);
  return {hi, __float2half_rn(__fmaf_rn(0.5f * loss, value, value - __half2float(hi)))};
}

// Four columns of a row of P, from `column` on, as hi, lo, hi, hi. In the reverse order: the last
// of a product comes first.
__device__ void store_parts(float4 v, std::int64_t column, __half* row) {
  const float value[4] = {v.w, v.z, v.y, v.x};
  const std::int64_t place = depth - 4 - column;
  union {
    __half half[4];
    uint2 word;
  } hi, lo;
  for (int c = 0; c < 4; ++c) {
    const Halves halves = split(value[c], truncation * static_cast<float>(depth - place - c));
    hi.half[c] = halves.hi;
    lo.half[c] = halves.lo;
  }
  __half* out = row + place;
  *reinterpret_cast<uint2*>(out) = hi.word;
  *reinterpret_cast<uint2*>(out + depth) = lo.word;
  *reinterpret_cast<uint2*>(out + 2 * depth) = hi.word;
  *reinterpret_cast<uint2*>(out + 3 * depth) = hi.word;
}

// x ← x L⁻ᵀ, 64 rows a thread block; L [128, 128] with the inverses of its 32 x 32 diagonal blocks.
// diagonal[i] −= Σ_k x[i, k]².
__global__ __launch_bounds__(solve_threads) void solve_panel(Matrix<const float> l,
                                                             const float* inverse, Matrix<float> x,
                                                             double* diagonal, Parts parts) {
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
      __pipeline_memcpy_async(&y[i][column], &x.data[(row0 + i) * x.stride + column],
                              sizeof(float));
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
    store_parts(four(&y[r][k]), parts.column + k,
                parts.data + (row0 + r - parts.first_row) * parts_stride);
  }
}

// parts ← hi, lo, hi, hi of panel [rows, 512]. A thread block a row.
constexpr int split_threads = depth / 4;
__global__ __launch_bounds__(split_threads) void split_panel(const float* panel, __half* parts) {
  const int k = threadIdx.x * 4;
  store_parts(four(panel + std::int64_t{blockIdx.x} * depth + k), k,
              parts + std::int64_t{blockIdx.x} * parts_stride);
}

// to ← from, 512 columns at most. A thread block a row.
constexpr int copy_threads = depth / 4;
__global__ __launch_bounds__(copy_threads) void copy_panel(Matrix<const float> from,
                                                           Matrix<float> to) {
  const std::int64_t i = blockIdx.x;
  const int j = threadIdx.x;
  float value[4];  // all are under way before the first is written
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (j + c * copy_threads < to.cols)
      value[c] = from.data[i * from.stride + j + c * copy_threads];
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (j + c * copy_threads < to.cols) to.data[i * to.stride + j + c * copy_threads] = value[c];
}

// The trailing update: the lower triangle of c takes c −= P Pᵀ.
// parts [m, 2048] holds P as hi, lo, hi, hi of its 512 columns, so that [lo hi hi] [hi lo hi]ᵀ is
// one product with the small terms first, and its two factors overlap in memory. Null: the product
// is one of P itself in float32, 128 columns at a time.
struct TrailingUpdate {
  cublasHandle_t cublas;
  const __half* parts;
  Matrix<const float> p;
  Matrix<float> c;

  // `count` blocks [rows, cols] of c, from (i, j) on, each `step` rows and columns after the one
  // before.
  void subtract(std::int64_t i, std::int64_t j, std::int64_t rows, std::int64_t cols,
                std::int64_t step, std::int64_t count) const {
    if (rows <= 0 || cols <= 0 || count <= 0) return;
    const float minus_one = -1.0f;
    const float one = 1.0f;
    // Row-major [i, j] is column-major [j, i].
    const auto multiply = [&](const void* left, const void* right, cudaDataType_t type,
                              std::int64_t stride, std::int64_t columns) {
      check(cublasGemmStridedBatchedEx_64(
          cublas, CUBLAS_OP_T, CUBLAS_OP_N, cols, rows, columns, &minus_one, right, type, stride,
          step * stride, left, type, stride, step * stride, &one, c.row(i) + j, CUDA_R_32F,
          c.stride, step * (c.stride + 1), count, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    };
    if (parts == nullptr) {
      for (std::int64_t k = 0; k < p.cols; k += leaf)
        multiply(p.row(i) + k, p.row(j) + k, CUDA_R_32F, p.stride, leaf);
      return;
    }
    multiply(parts + i * parts_stride + depth, parts + j * parts_stride, CUDA_R_16F, parts_stride,
             3 * depth);
  }

  // Squares on the diagonal, then between each two of them the square below the first; then the
  // same with squares twice as large, …
  void run() const {
    constexpr std::int64_t base = 512;
    const std::int64_t m = c.rows;
    const std::int64_t whole = m / base * base;
    subtract(0, 0, base, base, base, m / base);
    subtract(whole, whole, m - whole, m - whole, 0, 1);
    for (std::int64_t s = base; s < m; s *= 2) {
      const std::int64_t pairs = m / (2 * s);
      const std::int64_t rest = pairs * 2 * s;
      subtract(s, 0, s, s, 2 * s, pairs);
      subtract(rest + s, rest, m - rest - s, s, 0, 1);
    }
  }
};

// A range of columns. Right of a panel the first is the next panel, the others end where units do.
struct Columns {
  std::int64_t begin;
  std::int64_t end;
};

std::vector<Columns> cut_trailing(std::int64_t begin, std::int64_t d) {
  std::vector<Columns> ranges;
  for (std::int64_t at = begin; at < d; at = ranges.back().end)
    ranges.push_back({at, std::min(d, at == begin ? at + cholesky_block
                                                  : (at / cholesky_unit + 1) * cholesky_unit)});
  return ranges;
}

// The matrix in work and what its steps need.
struct Work {
  CudaHandles& handles;
  Matrix<float> a;
  double* diagonal;
  float* inverse;
  __half* parts;  // of the panel in work, from its first row below its square on. Null: float32

  Matrix<float> part(std::int64_t i, std::int64_t j, std::int64_t rows, std::int64_t cols) const {
    return {a.row(i) + j, rows, cols, a.stride};
  }

  Columns panel_at(std::int64_t begin) const {
    return {begin, std::min(a.rows, begin + cholesky_block)};
  }

  // to: where its parts go, or null.
  void factor_panel(Columns panel, __half* to) const {
    const float minus_one = -1.0f;
    const float one = 1.0f;
    const std::int64_t d = a.rows;
    for (std::int64_t j0 = panel.begin; j0 < panel.end; j0 += leaf) {
      const std::int64_t j1 = std::min(panel.end, j0 + leaf);
      const Matrix<float> block = part(j0, j0, j1 - j0, j1 - j0);
      factor_leaf<<<1, leaf_threads, leaf_shared_bytes, handles.stream>>>(block, diagonal + j0,
                                                                          inverse);
      check_launch();
      if (j1 == d) return;
      const Parts parts_of_leaf{panel.end == d ? nullptr : to, j0 - panel.begin, panel.end - j1};
      const auto thread_blocks = static_cast<unsigned>((d - j1 + solve_rows - 1) / solve_rows);
      solve_panel<<<thread_blocks, solve_threads, solve_shared_bytes, handles.stream>>>(
          block, inverse, part(j1, j0, d - j1, leaf), diagonal + j1, parts_of_leaf);
      check_launch();
      if (j1 < panel.end)  // the columns that are left of the 512
        check(cublasSgemm_64(handles.cublas(), CUBLAS_OP_T, CUBLAS_OP_N, panel.end - j1, d - j1,
                             leaf, &minus_one, a.row(j1) + j0, a.stride, a.row(j1) + j0, a.stride,
                             &one, a.row(j1) + j1, a.stride));
    }
  }

  TrailingUpdate trailing(Columns panel) const {
    const std::int64_t rows = a.rows - panel.end;
    return {handles.cublas(), parts, part(panel.end, panel.begin, rows, panel.end - panel.begin),
            part(panel.end, panel.end, rows, rows)};
  }

  // From the columns' first row on the diagonal down.
  void subtract(Columns panel, Columns columns) const {
    const std::int64_t i = columns.begin - panel.end;
    trailing(panel).subtract(i, i, a.rows - columns.begin, columns.end - columns.begin, 0, 1);
  }
};

void factor_alone(const Work& work) {
  const std::int64_t d = work.a.rows;
  for (std::int64_t k = 0; k < d; k += cholesky_block) {
    const Columns panel = work.panel_at(k);
    work.factor_panel(panel, work.parts);
    if (panel.end == d) return;
    if (cholesky_by_units(d))
      for (const Columns& columns : cut_trailing(panel.end, d)) work.subtract(panel, columns);
    else
      work.trailing(panel).run();
  }
}

// No rank's broadcast of a panel is queued behind work that needs a later panel, so whatever a rank
// waits for comes.
void factor_in_team(const Work& work, const FactorTeam& team, Stream& stream) {
  const std::int64_t d = work.a.rows;
  work.handles
      .cublas();  // takes memory: what may fail on one rank comes before what the others wait for
  const Buffer message(static_cast<std::size_t>(cholesky_message_bytes(d, cholesky_block)), stream);
  Stream beside(Backend::cuda, stream.device(), true);
  Event ready(stream);
  Event arrived(stream);
  const auto mine = [&](Columns columns) {
    return columns.begin / cholesky_unit % team.ranks == team.rank;
  };
  const auto rows_of = [&](Columns panel) { return d - panel.begin; };
  const auto in_matrix = [&](Columns panel) {
    return work.part(panel.begin, panel.begin, rows_of(panel), panel.end - panel.begin);
  };
  const auto in_message = [&](Columns panel) {
    return Matrix<float>(static_cast<float*>(message.data()), rows_of(panel),
                         panel.end - panel.begin);
  };
  const auto copy = [&](Matrix<const float> from, Matrix<float> to) {
    copy_panel<<<static_cast<unsigned>(to.rows), copy_threads, 0, work.handles.stream>>>(from, to);
    check_launch();
  };
  const auto diagonal_bytes = [&](Columns panel) {
    return static_cast<std::size_t>(d - panel.end) * sizeof(double);
  };
  const auto diagonal_in_message = [&](Columns panel) {
    return in_message(panel).data + in_message(panel).size();
  };

  const auto factor_and_send = [&](Columns panel) {
    if (mine(panel)) {
      work.factor_panel(panel, nullptr);
      copy(in_matrix(panel), in_message(panel));
      copy_on_device(diagonal_in_message(panel), work.diagonal + panel.end, diagonal_bytes(panel),
                     stream);
    }
    record(ready, stream);  // on other ranks: the message before has been read
    wait_for(ready, beside);
    team.broadcast(
        message.data(),
        static_cast<std::size_t>(cholesky_message_bytes(rows_of(panel), panel.end - panel.begin)),
        static_cast<int>(panel.begin / cholesky_unit % team.ranks), beside);
    record(arrived, beside);
  };
  const auto take = [&](Columns panel) {
    wait_for(arrived, stream);
    if (!mine(panel)) {
      copy(in_message(panel), in_matrix(panel));
      copy_on_device(work.diagonal + panel.end, diagonal_in_message(panel), diagonal_bytes(panel),
                     stream);
    }
    if (panel.end == d) return;
    split_panel<<<static_cast<unsigned>(d - panel.end), split_threads, 0, work.handles.stream>>>(
        in_message(panel).row(panel.end - panel.begin), work.parts);
    check_launch();
  };

  factor_and_send(work.panel_at(0));
  for (std::int64_t k = 0; k < d; k += cholesky_block) {
    const Columns panel = work.panel_at(k);
    take(panel);
    for (const Columns& columns : cut_trailing(panel.end, d)) {
      if (mine(columns)) work.subtract(panel, columns);
      if (columns.begin == panel.end) factor_and_send(columns);
    }
  }
  team.wait(beside);  // bounded, as the end of a stream is not
}

}  // namespace

void cholesky(Matrix<float> a, Matrix<double> diagonal, const FactorTeam& team, Stream& stream) {
  check(cudaFuncSetAttribute(factor_leaf, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             leaf_shared_bytes));
  check(cudaFuncSetAttribute(solve_panel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             solve_shared_bytes));
  const std::int64_t d = a.rows;
  const Array<std::uint16_t> parts(cholesky_part_rows(d), parts_stride, stream);
  auto* const half = d <= cholesky_float32 ? nullptr : reinterpret_cast<__half*>(parts.view.data);
  const Array<float> inverse(leaf, sub, stream);
  const Work work{stream.cuda(), a, diagonal.data, inverse.view.data, half};
  if (cholesky_by_units(d) && team.ranks > 1)
    factor_in_team(work, team, stream);
  else
    factor_alone(work);
}

}  // namespace qpipe::cuda
