#include <cuda_pipeline.h>

#include <algorithm>

#include "kernels/gptq_sweep.h"
#include "kernels/grid_cuda.h"
#include "kernels/scaling.h"
#include "kernels/split_multiply.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

// ---- c = c0 + a · b in float32. Every element is one chain of fused multiply-adds in ascending k,
// added to c0 at the end, whatever the number of rows and the height of the tile: a row's bits do
// not depend on its neighbours (cuBLAS does not promise that).

constexpr int tile_cols = 128;
constexpr int tile_depth = 16;
constexpr int multiply_threads = 256;  // 16 x 16, each 8 columns wide

// Four elements from p, of which `valid` exist; the others are 0. vector: p is 16-byte aligned.
__device__ float4 load4(const float* p, int valid, bool vector) {
  if (vector && valid >= 4) return *reinterpret_cast<const float4*>(p);
  float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (valid > 0) value.x = p[0];
  if (valid > 1) value.y = p[1];
  if (valid > 2) value.z = p[2];
  if (valid > 3) value.w = p[3];
  return value;
}

__device__ void store4(float* p, float4 value, int valid, bool vector) {
  if (vector && valid >= 4) {
    *reinterpret_cast<float4*>(p) = value;
    return;
  }
  if (valid > 0) p[0] = value.x;
  if (valid > 1) p[1] = value.y;
  if (valid > 2) p[2] = value.z;
  if (valid > 3) p[3] = value.w;
}

// to[0..3] ← p[0..3] in shared memory, asynchronously where all exist.
__device__ void copy4(float* to, const float* p, int valid, bool vector) {
  if (vector && valid >= 4)
    __pipeline_memcpy_async(to, p, sizeof(float4));
  else
    *reinterpret_cast<float4*>(to) = load4(p, valid, false);
}

// quads: groups of four rows per thread; the tile has 64 · quads rows.
template <int quads, bool vector>
__global__ void __launch_bounds__(multiply_threads, 2)
    multiply_add_kernel(Matrix<const float> c0, Matrix<const float> a, Matrix<const float> b,
                        Matrix<float> c) {
  constexpr int tile_rows = 64 * quads;
  __shared__ __align__(16) float a_tile[2][tile_depth][tile_rows + 4];  // transposed
  __shared__ __align__(16) float b_tile[2][tile_depth][tile_cols];
  const int tid = static_cast<int>(threadIdx.x);
  const int tx =
      tid / 32 % 2 * 8 +
      tid % 8;  // a warp has 8 of 16 tx and 4 of 16 ty: few values to read, each by many threads
  const int ty = tid / 64 * 4 + tid % 32 / 8;
  const std::int64_t row0 = std::int64_t{blockIdx.y} * tile_rows;
  const std::int64_t col0 = std::int64_t{blockIdx.x} * tile_cols;
  // Sizes of one dimension fit an int (checked by the launcher); offsets do not.
  const int depth = static_cast<int>(a.cols);
  const float* a_from[quads];
  bool a_exists[quads];
#pragma unroll
  for (int s = 0; s < quads; ++s) {
    const std::int64_t row = row0 + tid / 4 + 64 * s;
    a_exists[s] = row < a.rows;
    a_from[s] = a.data + row * a.stride + 4 * (tid % 4);
  }
  const float* b_from = b.data + tid / 32 * b.stride + col0 + 4 * (tid % 32);
  const int b_valid = static_cast<int>(b.cols - col0) - 4 * (tid % 32);

  float4 a_next[quads];
  const auto fetch = [&](int k0, int buffer) {
#pragma unroll
    for (int s = 0; s < quads; ++s)
      a_next[s] = load4(a_from[s] + k0, a_exists[s] ? depth - k0 - 4 * (tid % 4) : 0, vector);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int k = tid / 32 + 8 * s;
      copy4(&b_tile[buffer][k][4 * (tid % 32)], b_from + (k0 + 8 * s) * b.stride,
            k0 + k < depth ? b_valid : 0, vector);
    }
    __pipeline_commit();
  };
  const auto keep = [&](int buffer) {
#pragma unroll
    for (int s = 0; s < quads; ++s) {
      const int row = tid / 4 + 64 * s;
      const int k = 4 * (tid % 4);
      a_tile[buffer][k + 0][row] = a_next[s].x;
      a_tile[buffer][k + 1][row] = a_next[s].y;
      a_tile[buffer][k + 2][row] = a_next[s].z;
      a_tile[buffer][k + 3][row] = a_next[s].w;
    }
    __pipeline_wait_prior(0);
  };

  // Thread (ty, tx): rows 64·s + 4·ty + i, columns 64·t + 4·tx + j.
  float sum[4 * quads][8] = {};
  const int steps = (depth + tile_depth - 1) / tile_depth;
  if (steps > 0) {
    fetch(0, 0);
    keep(0);
    __syncthreads();
  }
  for (int step = 0; step < steps; ++step) {
    const int buffer = step & 1;
    if (step + 1 < steps)
      fetch((step + 1) * tile_depth,
            buffer ^ 1);  // which was last read before the previous barrier
#pragma unroll
    for (int k = 0; k < tile_depth; ++k) {
      float left[4 * quads];
      float right[8];
#pragma unroll
      for (int s = 0; s < quads; ++s) {
        const float4 part = *reinterpret_cast<const float4*>(&a_tile[buffer][k][64 * s + 4 * ty]);
        left[4 * s + 0] = part.x;
        left[4 * s + 1] = part.y;
        left[4 * s + 2] = part.z;
        left[4 * s + 3] = part.w;
      }
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const float4 part = *reinterpret_cast<const float4*>(&b_tile[buffer][k][64 * t + 4 * tx]);
        right[4 * t + 0] = part.x;
        right[4 * t + 1] = part.y;
        right[4 * t + 2] = part.z;
        right[4 * t + 3] = part.w;
      }
#pragma unroll
      for (int i = 0; i < 4 * quads; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
    }
    if (step + 1 < steps) keep(buffer ^ 1);
    __syncthreads();
  }

  // c may be c0, so what a thread reads it reads before it writes: otherwise each element would
  // wait for the one before.
#pragma unroll
  for (int s = 0; s < quads; ++s) {
    float4 value[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const std::int64_t row = row0 + 64 * s + 4 * ty + i;
        const std::int64_t col = col0 + 64 * t + 4 * tx;
        value[i][t] = load4(c0.data + row * c0.stride + col,
                            row < c.rows ? static_cast<int>(c.cols - col) : 0, vector);
      }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const std::int64_t row = row0 + 64 * s + 4 * ty + i;
        const std::int64_t col = col0 + 64 * t + 4 * tx;
        const float* add = &sum[4 * s + i][4 * t];
        const float4 v = value[i][t];
        store4(c.data + row * c.stride + col,
               make_float4(__fadd_rn(v.x, add[0]), __fadd_rn(v.y, add[1]), __fadd_rn(v.z, add[2]),
                           __fadd_rn(v.w, add[3])),
               row < c.rows ? static_cast<int>(c.cols - col) : 0, vector);
      }
  }
}

bool aligned(Matrix<const float> m) {
  return reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0 && m.stride % 4 == 0;
}

std::int64_t divide_up(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

int multiprocessors(const Stream& stream) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, stream.device()));
  return count;
}

// c = c0 + a · b; c may be c0.
void multiply_add(Matrix<const float> c0, Matrix<const float> a, Matrix<const float> b,
                  Matrix<float> c, Stream& stream) {
  if (c.rows == 0 || c.cols == 0) return;
  require(a.cols < 1 << 30, "gptq_sweep: more than 2^30 columns");
  const std::int64_t columns = divide_up(c.cols, tile_cols);
  // Lower tiles when high ones would leave multiprocessors idle.
  const bool high = columns * divide_up(c.rows, 128) >= 2 * multiprocessors(stream);
  const dim3 grid(static_cast<unsigned>(columns),
                  static_cast<unsigned>(divide_up(c.rows, high ? 128 : 64)));
  const bool vector = aligned(a) && aligned(b) && aligned(c0) && aligned(c);
  const auto kernel = high
                          ? (vector ? multiply_add_kernel<2, true> : multiply_add_kernel<2, false>)
                          : (vector ? multiply_add_kernel<1, true> : multiply_add_kernel<1, false>);
  kernel<<<grid, multiply_threads, 0, stream.cuda().stream>>>(c0, a, b, c);
  check_launch();
}

// ---- The sweep inside a block of at most 128 columns: 8 lanes per row, column 32·c + 4·lane + t
// in register 4·c + t of its lane.

constexpr int block_columns = static_cast<int>(sweep_block_columns);
constexpr int chunk = 32;
constexpr int chunks = block_columns / chunk;
constexpr int lanes = 8;
constexpr int most_sweep_threads = 256;
constexpr int owned = block_columns / lanes;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int sweep_shared_bytes =
    (block_columns * block_columns + block_columns) * static_cast<int>(sizeof(float));

// given: scale and zero are inputs. found: here, from u of the block (gptq_sweep.h); group_size is
// 32, 64 or 128. none: nothing is rounded, value ← u and error ← w − u.
enum class Grids { given, found, none };

struct BlockView {
  Matrix<const float> w;         // [rows, width] original
  Matrix<const float> v;         // [rows, width] compensated for all earlier columns
  Matrix<const float> n;         // [width, width]
  const float* pivot;            // [width]
  const std::int32_t* group_of;  // [width], or null: (first_column + column) / group_size
  std::int64_t first_column;
  std::int64_t group_size;
  Matrix<float> scale;  // [rows, groups]
  Matrix<std::uint8_t> zero;
  Matrix<std::uint8_t> code;  // [rows, width] out, unless Grids::none
  Matrix<float> error;        // [rows, width] out: w − q
  float* loss;                // [rows] added to, unless Grids::none
  Matrix<float> u;            // [rows, width] out when Grids::none; may be v
  bool weighted;              // SweepOptions::weighted_search
  bool vector;  // rows of w, v, n, error, u begin at multiples of 16 bytes, and those of code of 4
};

__device__ float reduce_lanes(float x) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(all_lanes, x, step);
  return x;
}

// The grid of the group that starts at chunk c and spans group_chunks chunks, equal in all lanes of
// the row. weight: of the block's columns in the search, or null: ones.
__device__ DeviceGrid find_row_grid(const float (&v)[owned], int c, int group_chunks,
                                    const GridOptions& options, const float* weight, int lane) {
  float lo = 0.0f;
  float hi = 0.0f;
  float poison = 0.0f;  // NaN when some weight is not finite
#pragma unroll
  for (int i = 0; i < owned; ++i)
    if (i / 4 >= c && i / 4 < c + group_chunks) {
      lo = v[i] < lo ? v[i] : lo;
      hi = v[i] > hi ? v[i] : hi;
      poison += __fmul_rn(v[i], 0.0f);
    }
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) {
    poison += __shfl_xor_sync(all_lanes, poison, step);
    lo = fminf(lo, __shfl_xor_sync(all_lanes, lo, step));
    hi = fmaxf(hi, __shfl_xor_sync(all_lanes, hi, step));
  }
  complete_range(lo, hi, options);
  DeviceGrid best = grid_of_range(lo, hi, options);
  if (options.mse_norm > 0.0f) {
    const float max_code = device_largest_code(options.bits);
    float best_error = INFINITY;
#pragma unroll 1
    for (int step = 0; step < shrink_steps; ++step) {
      const DeviceGrid candidate = shrunk_grid(lo, hi, step, options, weight != nullptr);
      float error = 0.0f;
#pragma unroll
      for (int i = 0; i < owned; ++i)
        if (i / 4 >= c && i / 4 < c + group_chunks) {
          const float own = grid_error(v[i], candidate, max_code, options.mse_norm);
          error += weight == nullptr ? own : own * weight[chunk * (i / 4) + 4 * lane + i % 4];
        }
      error = reduce_lanes(error);
      if (error < best_error) {
        best_error = error;
        best = candidate;
      }
    }
  }
  best.scale += poison;
  return best;
}

// Columns 32·c + 4·lane + t of a row, 0 beyond its width.
__device__ void load_row(const float* row, int width, int lane, bool vector, float (&out)[owned]) {
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    const int column = chunk * c + 4 * lane;
    const float4 part = load4(row + column, width - column, vector);
    out[4 * c + 0] = part.x;
    out[4 * c + 1] = part.y;
    out[4 * c + 2] = part.z;
    out[4 * c + 3] = part.w;
  }
}

__device__ void store_row(const float (&value)[owned], int width, int lane, bool vector,
                          float* row) {
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    const int column = chunk * c + 4 * lane;
    store4(row + column,
           make_float4(value[4 * c], value[4 * c + 1], value[4 * c + 2], value[4 * c + 3]),
           width - column, vector);
  }
}

// triangle [128, 128] ← N above the diagonal, 0 elsewhere as far as it is read: from the chunk of
// the diagonal on.
__device__ void load_triangle(const BlockView& block, float* triangle) {
  const int width = static_cast<int>(block.n.cols);
  for (int index = static_cast<int>(threadIdx.x); index < block_columns * chunk;
       index += static_cast<int>(blockDim.x)) {
    const int k = index / chunk;
    const int j = index % chunk * 4;
    const int valid = k < width ? width - j : 0;
    copy4(triangle + k * block_columns + j, block.n.data + k * block.n.stride + j, valid,
          block.vector);
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < block_columns * chunk;
       index += static_cast<int>(blockDim.x)) {
    const int k = index / chunk;
    const int j = k / chunk * chunk + index % chunk;
    if (j <= k) triangle[k * block_columns + j] = 0.0f;
  }
  __syncthreads();
}

// v += error · N[k, :] over the chunks from the one of column k on.
__device__ void add_row(float error, const float* triangle_row, int first_chunk, int lane,
                        float (&v)[owned]) {
#pragma unroll
  for (int to = 0; to < chunks; ++to) {
    if (to < first_chunk) continue;
    const float4 factor = *reinterpret_cast<const float4*>(&triangle_row[chunk * to + 4 * lane]);
    v[4 * to + 0] = fmaf(error, factor.x, v[4 * to + 0]);
    v[4 * to + 1] = fmaf(error, factor.y, v[4 * to + 1]);
    v[4 * to + 2] = fmaf(error, factor.z, v[4 * to + 2]);
    v[4 * to + 3] = fmaf(error, factor.w, v[4 * to + 3]);
  }
}

// v_j += Σ_{k<j} error_k N_kj, column after column: error(i, x) is that of the column in register i
// when its v is x. v keeps what each column's was then. Four columns of one lane at a time, so that
// only each fourth waits for another lane: every lane computes its own four as if they were next,
// and all take the owner's.
template <class Error>
__device__ void sweep_columns(const float* triangle, int width, int lane, const Error& error,
                              float (&v)[owned]) {
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    if (chunk * c >= width) continue;
    const float* corner = triangle + (chunk * c + 4 * lane) * block_columns + chunk * c + 4 * lane;
    const float4 row0 = *reinterpret_cast<const float4*>(corner);
    const float4 row1 = *reinterpret_cast<const float4*>(corner + block_columns);
    const float row2 = corner[2 * block_columns + 3];
#pragma unroll 1
    for (int owner = 0; owner < lanes; ++owner) {
      float own[4];
      own[0] = error(4 * c, v[4 * c]);
      own[1] = error(4 * c + 1, fmaf(own[0], row0.y, v[4 * c + 1]));
      own[2] = error(4 * c + 2, fmaf(own[1], row1.z, fmaf(own[0], row0.z, v[4 * c + 2])));
      own[3] = error(4 * c + 3,
                     fmaf(own[2], row2, fmaf(own[1], row1.w, fmaf(own[0], row0.w, v[4 * c + 3]))));
      const float* rows = triangle + (chunk * c + 4 * owner) * block_columns;
#pragma unroll
      for (int t = 0; t < 4; ++t)
        add_row(__shfl_sync(all_lanes, own[t], owner, lanes), rows + t * block_columns, c, lane, v);
    }
  }
}

// rint of v / scale between two integers, −zero and max_code − zero. The quotient is corrected once
// from that by the reciprocal: enough, for every scale of 16 bits, to fall on the same side of each
// boundary between codes as the correctly rounded one.
struct Rounding {
  float scale;
  float reciprocal;
  float zero;

  __device__ void set(float new_scale, float new_zero) {
    scale = new_scale;
    reciprocal = __frcp_rn(new_scale);
    zero = new_zero;
  }
  __device__ float nearest(float v, float max_code) const {
    constexpr float shift = 0x1.8p23f;  // leaves no room for a fraction
    const float guess = __fmul_rn(v, reciprocal);
    const float quotient = __fmaf_rn(__fmaf_rn(-guess, scale, v), reciprocal, guess);
    return __fsub_rn(__fadd_rn(fminf(fmaxf(quotient, -zero), max_code - zero), shift), shift);
  }
};

template <Grids grids>
__global__ void __launch_bounds__(most_sweep_threads, 2)
    sweep_block_kernel(BlockView block, GridOptions options) {
  extern __shared__ __align__(16) float shared[];
  float* triangle = shared;
  float* weight = shared + block_columns * block_columns;  // pivot²
  const int width = static_cast<int>(block.w.cols);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const std::int64_t wanted_row = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / lanes;
  const bool active = wanted_row < block.w.rows;
  const std::int64_t row =
      active ? wanted_row
             : block.w.rows - 1;  // idle lanes follow the last row: shuffles need the whole warp
  const float max_code = device_largest_code(options.bits);

  float v[owned];
  float w[owned];
  load_row(block.v.data + row * block.v.stride, width, lane, block.vector, v);
  load_row(block.w.data + row * block.w.stride, width, lane, block.vector, w);
  for (int k = static_cast<int>(threadIdx.x); k < block_columns; k += static_cast<int>(blockDim.x))
    weight[k] = k < width ? block.pivot[k] * block.pivot[k] : 0.0f;
  load_triangle(block, triangle);

  const auto unrounded = [&](int i, float x) { return w[i] - x; };
  float* error_row = block.error.data + row * block.error.stride;
  if (grids == Grids::none) {
    sweep_columns(triangle, width, lane, unrounded, v);
    if (!active) return;
    store_row(v, width, lane, block.vector, block.u.data + row * block.u.stride);
#pragma unroll
    for (int i = 0; i < owned; ++i) w[i] -= v[i];
    store_row(w, width, lane, block.vector, error_row);
    return;
  }

  constexpr int per_grid = grids == Grids::found ? 4 : 1;  // registers that share a grid
  Rounding rounding[owned / per_grid];
  if (grids == Grids::given) {
#pragma unroll
    for (int i = 0; i < owned; ++i) {
      const int column = chunk * (i / 4) + 4 * lane + i % 4;
      rounding[i / per_grid].set(1.0f, 0.0f);
      if (column >= width) continue;
      const int group = block.group_of != nullptr ? block.group_of[column]
                                                  : static_cast<int>(block.first_column + column) /
                                                        static_cast<int>(block.group_size);
      rounding[i / per_grid].set(
          block.scale.data[row * block.scale.stride + group],
          static_cast<float>(block.zero.data[row * block.zero.stride + group]));
    }
  }
  if (grids == Grids::found) {
    float u[owned];
#pragma unroll
    for (int i = 0; i < owned; ++i) u[i] = v[i];
    sweep_columns(triangle, width, lane, unrounded, u);
    const int group_chunks = static_cast<int>(block.group_size) / chunk;
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      if (c % group_chunks != 0) continue;
      DeviceGrid grid{1.0f, 0.0f};
      if (chunk * c < width)
        grid = find_row_grid(u, c, group_chunks, options, block.weighted ? weight : nullptr, lane);
#pragma unroll
      for (int to = c; to < chunks; ++to)
        if (to < c + group_chunks) rounding[4 * to / per_grid].set(grid.scale, grid.zero);
      if (active && lane == 0 && chunk * c < width) {
        const std::int64_t group = (block.first_column + chunk * c) / block.group_size;
        block.scale.data[row * block.scale.stride + group] = grid.scale;
        block.zero.data[row * block.zero.stride + group] = static_cast<std::uint8_t>(grid.zero);
      }
    }
  }

  sweep_columns(
      triangle, width, lane,
      [&](int i, float x) {
        const Rounding& r = rounding[i / per_grid];
        return __fsub_rn(w[i], __fmul_rn(r.scale, r.nearest(x, max_code)));
      },
      v);

  float loss = 0.0f;
  unsigned codes[chunks] = {};
#pragma unroll
  for (int i = 0; i < owned; ++i) {
    const Rounding& r = rounding[i / per_grid];
    const float steps = r.nearest(v[i], max_code);
    const float q = __fmul_rn(r.scale, steps);
    const float miss = v[i] - q;
    loss += weight[chunk * (i / 4) + 4 * lane + i % 4] * (miss * miss);
    codes[i / 4] |= static_cast<unsigned>(steps + r.zero) << (8 * (i % 4));
    w[i] = __fsub_rn(w[i], q);
  }
  loss = reduce_lanes(loss);
  if (!active) return;
  if (lane == 0) block.loss[row] += loss;
  store_row(w, width, lane, block.vector, error_row);
  std::uint8_t* code_row = block.code.data + row * block.code.stride;
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    const int column = chunk * c + 4 * lane;
    if (block.vector && column + 4 <= width) {
      *reinterpret_cast<unsigned*>(code_row + column) = codes[c];
      continue;
    }
#pragma unroll
    for (int t = 0; t < 4; ++t)
      if (column + t < width) code_row[column + t] = static_cast<std::uint8_t>(codes[c] >> (8 * t));
  }
}

template <Grids grids>
void sweep_block(BlockView block, const GridOptions& options, Stream& stream) {
  check(cudaFuncSetAttribute(sweep_block_kernel<grids>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             sweep_shared_bytes));
  const bool code_vector =
      reinterpret_cast<std::uintptr_t>(block.code.data) % 4 == 0 && block.code.stride % 4 == 0;
  block.vector = aligned(block.w) && aligned(block.v) && aligned(block.n) && aligned(block.error) &&
                 aligned(block.u) && code_vector;
  // Few rows go to many multiprocessors.
  int threads = most_sweep_threads;
  while (threads > 64 && divide_up(block.w.rows * lanes, threads / 2) <= multiprocessors(stream))
    threads /= 2;
  sweep_block_kernel<grids><<<static_cast<unsigned>(divide_up(block.w.rows * lanes, threads)),
                              threads, sweep_shared_bytes, stream.cuda().stream>>>(block, options);
  check_launch();
}

// ---- Columns.

template <class T>
__global__ void gather_columns_kernel(const T* w, std::int64_t stride,
                                      Matrix<const std::int32_t> perm,
                                      Matrix<const std::uint8_t> dead, Matrix<float> out) {
  const std::int64_t k = first_column(1);
  if (k >= out.cols) return;
  const std::int32_t from = perm.data[k];
  const bool live = dead.data[from] == 0;
  for (std::int64_t r = blockIdx.y; r < out.rows; r += gridDim.y)
    out.data[r * out.stride + k] = live ? widen(w[r * stride + from]) : 0.0f;
}

__global__ void scatter_columns_kernel(Matrix<const std::uint8_t> code,
                                       Matrix<const std::int32_t> perm, Matrix<std::uint8_t> out) {
  const std::int64_t k = first_column(1);
  if (k >= code.cols) return;
  const std::int32_t to = perm.data[k];
  for (std::int64_t r = blockIdx.y; r < code.rows; r += gridDim.y)
    out.data[r * out.stride + to] = code.data[r * code.stride + k];
}

}  // namespace

void gptq_sweep(Matrix<const float> w, Matrix<const float> n, Matrix<const float> pivot,
                const SweepOptions& options, Matrix<const std::int32_t> group_of,
                Matrix<float> scale, Matrix<std::uint8_t> zero, Matrix<std::uint8_t> code,
                Matrix<float> loss, Stream& stream) {
  const std::int64_t d = w.cols;
  const std::int64_t group_size = options.group_size;
  const auto [given, fused, unit, panel, turn] =
      plan_sweep(w.rows, d, group_size, options.static_grids);
  Array<float> search_weight;
  if (options.weighted_search) {
    search_weight = Array<float>(1, d, stream);
    cuda::scale_weight({pivot.data, DType::f32, 1, d}, pivot, {}, search_weight, stream);
  }
  if (given && !options.static_grids)
    cuda::find_weighted_grids(w, group_size, options.grid, search_weight, scale, zero, stream);
  const std::int64_t value_stride = divide_up(d, 4) * 4;
  const std::int64_t error_stride = divide_up(panel, 4) * 4;
  const std::int64_t unit_stride = divide_up(unit, 4) * 4;
  const Array<float> value_memory(turn, value_stride, stream);
  const Array<float> error_memory(turn, error_stride, stream);
  const SplitMultiply split_multiply(d > panel ? turn : 0, panel, d - panel, stream);
  Array<float> unit_memory;
  if (!given && !fused) unit_memory = Array<float>(turn, unit_stride, stream);
  fill_zero(loss.data, static_cast<std::size_t>(w.rows) * sizeof(float), stream);

  for (std::int64_t r0 = 0; r0 < w.rows; r0 += turn) {
    const std::int64_t rows = std::min(turn, w.rows - r0);
    const Matrix<const float> w_rows = w.row_range(r0, rows);
    const Matrix<float> value(value_memory.view.data, rows, d, value_stride);
    for (std::int64_t p0 = 0; p0 < d; p0 += panel) {
      const std::int64_t p1 = std::min(d, p0 + panel);
      const Matrix<float> error(error_memory.view.data, rows, p1 - p0, error_stride);  // w − q
      // v of columns to which errors of the first `swept` were added: w, as long as there are none.
      const auto values = [&](std::int64_t swept, std::int64_t begin, std::int64_t end) {
        return (swept == 0 ? w_rows : Matrix<const float>(value)).col_range(begin, end - begin);
      };
      for (std::int64_t b0 = p0; b0 < p1;) {
        std::int64_t b1 = std::min(p1, b0 + block_columns);
        const auto view = [&](std::int64_t begin, std::int64_t end, Matrix<const float> v,
                              Matrix<float> u) {
          const std::int64_t width = end - begin;
          return BlockView{w_rows.col_range(begin, width),
                           v,
                           n.row_range(begin, width).col_range(begin, width),
                           pivot.data + begin,
                           options.static_grids ? group_of.data + begin : nullptr,
                           begin,
                           group_size,
                           scale.row_range(r0, rows),
                           zero.row_range(r0, rows),
                           code.row_range(r0, rows).col_range(begin, width),
                           error.col_range(begin - p0, width),
                           loss.data + r0,
                           u,
                           options.weighted_search,
                           false};
        };
        if (!given && !fused) {
          const std::int64_t unit_begin = b0 / unit * unit;
          const std::int64_t unit_end = std::min(d, unit_begin + unit);
          b1 = std::min(b1, unit_end);
          if (b0 == unit_begin) {
            const std::int64_t columns = unit_end - unit_begin;
            const Matrix<float> u(unit_memory.view.data, rows, columns, unit_stride);
            Matrix<const float> from =
                values(b0, unit_begin, unit_end);  // v, then u as far as it is known
            for (std::int64_t k0 = 0; k0 < columns; k0 += block_columns) {
              const std::int64_t k1 = std::min(columns, k0 + block_columns);
              sweep_block<Grids::none>(
                  view(b0 + k0, b0 + k1, from.col_range(k0, k1 - k0), u.col_range(k0, k1 - k0)),
                  options.grid, stream);
              multiply_add(from.col_range(k1, columns - k1), error.col_range(b0 - p0 + k0, k1 - k0),
                           n.row_range(b0 + k0, k1 - k0).col_range(b0 + k1, columns - k1),
                           u.col_range(k1, columns - k1), stream);
              from = u;
            }
            cuda::find_weighted_grids(
                u, group_size, options.grid,
                options.weighted_search
                    ? Matrix<const float>(search_weight.view).col_range(b0, columns)
                    : Matrix<const float>(),
                scale.row_range(r0, rows).col_range(b0 / group_size, columns / group_size),
                zero.row_range(r0, rows).col_range(b0 / group_size, columns / group_size), stream);
          }
        }
        const BlockView block = view(b0, b1, values(b0, b0, b1), {});
        if (fused)
          sweep_block<Grids::found>(block, options.grid, stream);
        else
          sweep_block<Grids::given>(block, options.grid, stream);
        multiply_add(values(b0, b1, p1), error.col_range(b0 - p0, b1 - b0),
                     n.row_range(b0, b1 - b0).col_range(b1, p1 - b1), value.col_range(b1, p1 - b1),
                     stream);
        b0 = b1;
      }
      const Matrix<const float> n_right = n.row_range(p0, p1 - p0).col_range(p1, d - p1);
      split_multiply.run(values(p0, p1, d), error, n_right, value.col_range(p1, d - p1), stream);
    }
  }
}

void gather_columns(ConstTensor w, Matrix<const std::int32_t> perm, Matrix<const std::uint8_t> dead,
                    Matrix<float> out, Stream& stream) {
  if (out.size() == 0) return;
  const dim3 grid = row_grid(out.rows, out.cols, 1);
  const cudaStream_t queue = stream.cuda().stream;
  switch (w.dtype) {
    case DType::f16:
      gather_columns_kernel<<<grid, row_threads, 0, queue>>>(static_cast<const __half*>(w.data),
                                                             w.stride, perm, dead, out);
      break;
    case DType::bf16:
      gather_columns_kernel<<<grid, row_threads, 0, queue>>>(
          static_cast<const __nv_bfloat16*>(w.data), w.stride, perm, dead, out);
      break;
    default:
      gather_columns_kernel<<<grid, row_threads, 0, queue>>>(static_cast<const float*>(w.data),
                                                             w.stride, perm, dead, out);
  }
  check_launch();
}

void scatter_columns(Matrix<const std::uint8_t> code, Matrix<const std::int32_t> perm,
                     Matrix<std::uint8_t> out, Stream& stream) {
  if (code.size() == 0) return;
  scatter_columns_kernel<<<row_grid(code.rows, code.cols, 1), row_threads, 0,
                           stream.cuda().stream>>>(code, perm, out);
  check_launch();
}

}  // namespace qpipe::cuda
