#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include "kernels/cuda_handles.h"
#include "kernels/split_multiply.h"
#include "kernels/wgmma_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int threads = 256;
constexpr int tile = static_cast<int>(split_tile);
constexpr int shared_bytes = 74 << 10;                              // of two stages
constexpr int hopper_shared_bytes = (192 << 10) + wgmma_alignment;  // of three

struct Pieces {
  __half* hi;
  __half* lo;
  std::int64_t stride;
};

// The power of two that brings `largest` into [2^14, 2^15); 1 for 0 and for what is not finite.
__device__ float power_scale(float largest) {
  if (!(largest > 0.0f) || isinf(largest)) return 1.0f;
  return ldexpf(1.0f, min(14 - ilogbf(largest), 100));
}

__device__ void split(float value, __half& hi, __half& lo) {
  hi = __float2half_rn(value);
  lo = __float2half_rn(value - __half2float(hi));
}

// A warp for each row; k beyond a.cols up to `padded` is 0.
__global__ void split_rows(Matrix<const float> a, int padded, Pieces out, float* scale) {
  const std::int64_t row = std::int64_t{blockIdx.x} * (threads / warp) + threadIdx.x / warp;
  if (row >= a.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const float* from = a.data + row * a.stride;
  float largest = 0.0f;
  for (int k = lane; k < a.cols; k += warp) largest = fmaxf(largest, fabsf(from[k]));
  for (int half = warp / 2; half > 0; half /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, half));
  const float factor = power_scale(largest);
  for (int k = lane; k < padded; k += warp)
    split(k < a.cols ? from[k] * factor : 0.0f, out.hi[row * out.stride + k],
          out.lo[row * out.stride + k]);
  if (lane == 0) scale[row] = 1.0f / factor;
}

constexpr int column_warps = threads / warp;
constexpr int column_depth = 256;  // k of a thread block

// largest[j] ← max |b[k, j]|, 0 before: bits of non-negative numbers are ordered as they are. 32
// columns and 256 k for each thread block of 8 warps.
__global__ void column_maximum(Matrix<const float> b, unsigned* largest) {
  __shared__ float partial[column_warps][warp];
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int part = static_cast<int>(threadIdx.x) / warp;
  const std::int64_t column = std::int64_t{blockIdx.x} * warp + lane;
  const bool exists = column < b.cols;
  const std::int64_t first = std::int64_t{blockIdx.y} * column_depth;
  const std::int64_t end = min(b.rows, first + column_depth);
  float most = 0.0f;
#pragma unroll 8
  for (std::int64_t k = first + part; k < end; k += column_warps)
    most = fmaxf(most, exists ? fabsf(b.data[k * b.stride + column]) : 0.0f);
  partial[part][lane] = most;
  __syncthreads();
  if (part != 0 || !exists) return;
  for (int i = 1; i < column_warps; ++i) most = fmaxf(most, partial[i][lane]);
  atomicMax(largest + column, __float_as_uint(most));
}

// k from b.rows up to `padded` is 0.
__global__ void split_columns(Matrix<const float> b, int padded, const unsigned* largest,
                              Pieces out, float* scale) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int part = static_cast<int>(threadIdx.x) / warp;
  const std::int64_t column = std::int64_t{blockIdx.x} * warp + lane;
  if (column >= b.cols) return;
  const float factor = power_scale(__uint_as_float(largest[column]));
  const std::int64_t first = std::int64_t{blockIdx.y} * column_depth;
  const std::int64_t end = min(std::int64_t{padded}, first + column_depth);
#pragma unroll 8
  for (std::int64_t k = first + part; k < end; k += column_warps)
    split(k < b.rows ? b.data[k * b.stride + column] * factor : 0.0f,
          out.hi[k * out.stride + column], out.lo[k * out.stride + column]);
  if (blockIdx.y == 0 && part == 0) scale[column] = 1.0f / factor;
}

__device__ float2 load2(const float* p, int valid, bool vector) {
  if (vector && valid >= 2) return *reinterpret_cast<const float2*>(p);
  return make_float2(valid > 0 ? p[0] : 0.0f, valid > 1 ? p[1] : 0.0f);
}

__device__ void store2(float* p, float2 value, int valid, bool vector) {
  if (vector && valid >= 2) {
    *reinterpret_cast<float2*>(p) = value;
    return;
  }
  if (valid > 0) p[0] = value.x;
  if (valid > 1) p[1] = value.y;
}

// What a product reads: rows from row0, columns from col0 on.
struct Operands {
  Pieces a;
  Pieces b;
  int padded;
  std::int64_t rows;
  std::int64_t row0;
  std::int64_t col0;
};

#if QPIPE_WGMMA

// ---- The same on Hopper. A warpgroup has 64 rows of the tile.

constexpr int hopper_depth = 64;  // k at a time
constexpr int hopper_stages = 3;
static_assert(split_depth % hopper_depth == 0);
constexpr int piece_bytes = tile * hopper_depth * 2;  // of the left or of the right, hi or lo
constexpr int hopper_stage_bytes = 4 * piece_bytes;
static_assert(hopper_stages * hopper_stage_bytes + wgmma_alignment == hopper_shared_bytes);
constexpr int sums = 64 * tile / wgmma_threads;

// Left: a line for each row; right: a line for each k, of 64 columns, then of the next 64.
__device__ void fetch_lines(const Operands& from, int k0, std::uint32_t to) {
  const auto copy = [](std::uint32_t target, const __half* source) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
  };
#pragma unroll
  for (int piece = 0; piece < 2; ++piece) {
    const __half* left = piece == 0 ? from.a.hi : from.a.lo;
    const __half* right = piece == 0 ? from.b.hi : from.b.lo;
    const std::uint32_t left_to = to + piece * piece_bytes;
    const std::uint32_t right_to = to + (2 + piece) * piece_bytes;
#pragma unroll
    for (int i = 0; i < tile * 8 / threads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + threads * i;
      const int row = index / 8;
      const int chunk = index % 8;
      const std::int64_t source = min(from.row0 + row, from.rows - 1);  // beyond: not stored
      copy(left_to + row * wgmma_line + (chunk ^ row % 8) * 16,
           left + source * from.a.stride + k0 + chunk * 8);
    }
#pragma unroll
    for (int i = 0; i < tile * 8 / threads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + threads * i;
      const int k = index / 16;
      const int chunk = index % 16;
      copy(right_to + (chunk / 8 * hopper_depth + k) * wgmma_line + (chunk % 8 ^ k % 8) * 16,
           right + (k0 + k) * from.b.stride + from.col0 + chunk * 8);
    }
  }
}

__device__ void multiply_tile_of(const Operands& from, unsigned char* shared, float (&sum)[sums]) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const std::uint32_t memory = (address + wgmma_alignment - 1) / wgmma_alignment * wgmma_alignment;
  const int slices = from.padded / hopper_depth;
  const auto load = [&](int slice) {
    if (slice < slices)
      fetch_lines(from, slice * hopper_depth, memory + slice % hopper_stages * hopper_stage_bytes);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  const int own_lines = static_cast<int>(threadIdx.x) / wgmma_threads * 64 * wgmma_line;
  for (int slice = 0; slice + 1 < hopper_stages; ++slice) load(slice);
  float part[sums] = {};
  for (int slice = 0; slice < slices; ++slice) {
    asm volatile("cp.async.wait_group %0;" ::"n"(hopper_stages - 2) : "memory");
    wgmma_see_writes();
    __syncthreads();  // all have read what the next slice takes the place of
    load(slice + hopper_stages - 1);
    const std::uint32_t stage = memory + slice % hopper_stages * hopper_stage_bytes;
#pragma unroll
    for (int k = 0; k < hopper_depth; k += wgmma_depth) {
      const auto left = [&](int piece) {
        return wgmma_lines_of_k(stage + piece * piece_bytes + own_lines + 2 * k);
      };
      const auto right = [&](int piece) {
        return wgmma_lines_of_others(stage + (2 + piece) * piece_bytes + k * wgmma_line,
                                     hopper_depth);
      };
      const auto multiply = [&](int a, int b, bool add) {
        wgmma_64x128<__half, Along::k, Along::other>(part, left(a), right(b), add);
      };
      keep_in_place(part);
      wgmma_begin();
      multiply(1, 0, false);  // a tensor core truncates what it adds to: only the sum of 16 columns
      multiply(0, 1, true);   // is left to it
      multiply(0, 0, true);
      wgmma_commit();
      wgmma_wait<0>();
      keep_in_place(part);
#pragma unroll
      for (int i = 0; i < sums; ++i) sum[i] = __fadd_rn(sum[i], part[i]);
    }
  }
}

// Where in the tile four of a thread's sums lie: (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1).
struct Place {
  int row;
  int col;
};
__device__ Place place_of(int quad) {
  const int tid = static_cast<int>(threadIdx.x);
  return {tid / warp * 16 + tid % warp / 4, quad * 8 + tid % 4 * 2};
}

#else

// ---- The same by instructions that every GPU has.

constexpr int step = 16;  // k of one instruction

constexpr int depth = 32;  // k at a time
static_assert(split_depth % depth == 0);
// A warp has 64 rows and 32 columns of the tile, as 4 x 4 products of 16 rows and 8 columns.
constexpr int warp_rows = 64;
constexpr int warp_cols = 32;
constexpr int row_tiles = warp_rows / 16;
constexpr int col_tiles = warp_cols / 8;
// Of rows in shared memory: eight neighbouring rows in different banks.
constexpr int left_pitch = depth + 8;
constexpr int right_pitch = tile + 8;

struct Stage {
  __half left[2][tile][left_pitch];  // hi, lo
  __half right[2][depth][right_pitch];
};
constexpr int stages = 2;
static_assert(stages * sizeof(Stage) == shared_bytes);

__device__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices, whose rows' addresses the lanes give, eight lanes for each.
__device__ void load_matrices(const __half* row, unsigned (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ void load_transposed(const __half* row, unsigned (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// sum [16, 8] += left [16, 16] · right [16, 8]
__device__ void multiply_tile(const unsigned (&left)[4], unsigned right0, unsigned right1,
                              float (&sum)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

constexpr int sums = row_tiles * col_tiles * 4;

__device__ void multiply_tile_of(const Operands& from, unsigned char* shared, float (&sum)[sums]) {
  auto* const stage = reinterpret_cast<Stage*>(shared);
  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid % warp;
  const int first_row = tid / warp / 4 * warp_rows;
  const int first_col = tid / warp % 4 * warp_cols;
  const auto fetch = [&](int k0, Stage& to) {
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
      const __half* left = piece == 0 ? from.a.hi : from.a.lo;
      const __half* right = piece == 0 ? from.b.hi : from.b.lo;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int index = tid + threads * i;
        const int row = index / 4;  // 4 x 8 columns
        const int k = index % 4 * 8;
        const std::int64_t source =
            min(from.row0 + row, from.rows - 1);  // rows beyond the last are not stored
        __pipeline_memcpy_async(&to.left[piece][row][k], left + source * from.a.stride + k0 + k,
                                16);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int index = tid + threads * i;
        const int k = index / 16;  // 16 x 8 columns
        const int col = index % 16 * 8;
        __pipeline_memcpy_async(&to.right[piece][k][col],
                                right + (k0 + k) * from.b.stride + from.col0 + col, 16);
      }
    }
    __pipeline_commit();
  };

  fetch(0, stage[0]);
  int current = 0;
  for (int k0 = 0; k0 < from.padded; k0 += depth) {
    __pipeline_wait_prior(0);
    __syncthreads();  // what comes next goes where all have read
    if (k0 + depth < from.padded) fetch(k0 + depth, stage[current ^ 1]);
    const Stage& now = stage[current];
#pragma unroll
    for (int k = 0; k < depth; k += step) {
      unsigned right[2][col_tiles / 2][4];  // columns 16 t …: the low and the high eight k of eight
                                            // columns, then of the next eight
#pragma unroll
      for (int piece = 0; piece < 2; ++piece)
#pragma unroll
        for (int t = 0; t < col_tiles / 2; ++t)
          load_transposed(&now.right[piece][k + lane % 16][first_col + 16 * t + lane / 16 * 8],
                          right[piece][t]);
#pragma unroll
      for (int s = 0; s < row_tiles; ++s) {
        unsigned left[2][4];
#pragma unroll
        for (int piece = 0; piece < 2; ++piece)
          load_matrices(&now.left[piece][first_row + 16 * s + lane % 16][k + lane / 16 * 8],
                        left[piece]);
#pragma unroll
        for (int t = 0; t < col_tiles; ++t) {
          const auto& hi = right[0][t / 2];
          const auto& lo = right[1][t / 2];
          float part[4] = {};  // a tensor core truncates what it adds to: only the sum of 16
                               // columns is left to it
          multiply_tile(left[1], hi[t % 2 * 2], hi[t % 2 * 2 + 1], part);
          multiply_tile(left[0], lo[t % 2 * 2], lo[t % 2 * 2 + 1], part);
          multiply_tile(left[0], hi[t % 2 * 2], hi[t % 2 * 2 + 1], part);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& total = sum[(s * col_tiles + t) * 4 + i];
            total = __fadd_rn(total, part[i]);
          }
        }
      }
    }
    current ^= 1;
  }
}

struct Place {
  int row;
  int col;
};
__device__ Place place_of(int quad) {
  const int tid = static_cast<int>(threadIdx.x);
  return {tid / warp / 4 * warp_rows + quad / col_tiles * 16 + tid % warp / 4,
          tid / warp % 4 * warp_cols + quad % col_tiles * 8 + tid % 4 * 2};
}

#endif

__global__ void __launch_bounds__(threads, QPIPE_WGMMA ? 1 : 2)
    multiply_kernel(Matrix<const float> c0, Pieces a, const float* left_scale, Pieces b,
                    const float* right_scale, int padded, Matrix<float> c, bool vector) {
  extern __shared__ __align__(16) unsigned char shared[];
  const std::int64_t row0 = std::int64_t{blockIdx.y} * tile;
  const std::int64_t col0 = std::int64_t{blockIdx.x} * tile;
  float sum[sums] = {};
  multiply_tile_of({a, b, padded, c.rows, row0, col0}, shared, sum);

  // c may be c0: a thread reads what it writes, several values at a time.
  constexpr int at_once = 4;
#pragma unroll
  for (int quad0 = 0; quad0 < sums / 4; quad0 += at_once) {
    float2 value[at_once][2];
#pragma unroll
    for (int q = 0; q < at_once; ++q) {
      const Place own = place_of(quad0 + q);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t row = row0 + own.row + 8 * half;
        const std::int64_t col = col0 + own.col;
        value[q][half] = load2(c0.data + row * c0.stride + col,
                               row < c.rows ? static_cast<int>(c.cols - col) : 0, vector);
      }
    }
#pragma unroll
    for (int q = 0; q < at_once; ++q) {
      const Place own = place_of(quad0 + q);
      const std::int64_t col = col0 + own.col;
      const int valid = static_cast<int>(c.cols - col);
      const float2 col_scale = load2(right_scale + col, valid, false);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t row = row0 + own.row + 8 * half;
        if (row >= c.rows) continue;
        const float row_scale = left_scale[row];
        const float2 v = value[q][half];
        const float* product = sum + 4 * (quad0 + q) + 2 * half;
        store2(c.data + row * c.stride + col,
               make_float2(__fadd_rn(v.x, product[0] * row_scale * col_scale.x),
                           __fadd_rn(v.y, product[1] * row_scale * col_scale.y)),
               valid, vector);
      }
    }
  }
}

bool even(Matrix<const float> m) {
  return reinterpret_cast<std::uintptr_t>(m.data) % 8 == 0 && m.stride % 2 == 0;
}

unsigned blocks(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

// On Hopper that of three stages, of which the code for any other GPU leaves some.
int shared_bytes_of(Stream& stream) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, stream.device()));
  return major == 9 ? hopper_shared_bytes : shared_bytes;
}

Pieces pieces(const Array<std::uint16_t>& memory) {
  auto* const data = reinterpret_cast<__half*>(memory.view.data);
  return {data, data + memory.view.rows / 2 * memory.view.cols, memory.view.cols};
}

}  // namespace

SplitMultiply::SplitMultiply(std::int64_t rows, std::int64_t depth, std::int64_t cols,
                             Stream& stream)
    : left_(2 * rows, round_up_to(depth, split_depth), stream),
      right_(2 * round_up_to(depth, split_depth), round_up_to(cols, split_tile), stream),
      left_scale_(1, rows, stream),
      right_scale_(1, cols, stream),
      right_largest_(1, cols, stream) {}

void SplitMultiply::run(Matrix<const float> c0, Matrix<const float> a, Matrix<const float> b,
                        Matrix<float> c, Stream& stream) const {
  if (c.rows == 0 || c.cols == 0) return;
  const auto padded = static_cast<int>(round_up_to(a.cols, split_depth));
  require(padded <= left_.view.cols && c.rows <= left_.view.rows / 2 &&
              c.cols <= right_scale_.view.cols,
          "SplitMultiply: a matrix is too large");
  const cudaStream_t queue = stream.cuda().stream;
  const Pieces left = pieces(left_);
  const Pieces right = pieces(right_);
  split_rows<<<blocks(a.rows, threads / warp), threads, 0, queue>>>(a, padded, left,
                                                                    left_scale_.view.data);
  check_launch();
  auto* const largest = reinterpret_cast<unsigned*>(right_largest_.view.data);
  check(cudaMemsetAsync(largest, 0, static_cast<std::size_t>(b.cols) * sizeof *largest, queue));
  const dim3 parts(blocks(b.cols, warp), blocks(padded, column_depth));
  column_maximum<<<parts, threads, 0, queue>>>(b, largest);
  check_launch();
  split_columns<<<parts, threads, 0, queue>>>(b, padded, largest, right, right_scale_.view.data);
  check_launch();
  const int bytes = shared_bytes_of(stream);
  check(cudaFuncSetAttribute(multiply_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  multiply_kernel<<<dim3(blocks(c.cols, tile), blocks(c.rows, tile)), threads, bytes, queue>>>(
      c0, left, left_scale_.view.data, right, right_scale_.view.data, padded, c,
      even(c0) && even(c));
  check_launch();
}

}  // namespace qpipe::cuda
