// XᵀX of several sets of rows at once, added to their 64-bit sums (kernels/hessian.h).
//
// A thread block computes 128 × 128 elements of one sum's lower triangle. Both operands are x
// itself, whose rows are what is summed over: slices of `depth` rows come to shared memory by
// cp.async, some slices ahead of the products. A slice is stored in strips of 64 columns: a line of
// 128 bytes for each row, in which chunk c of 16 bytes stands at c ^ (row mod 8). That is what
// wgmma reads ("MN-major, 128-byte swizzle"), and lines of ldmatrix fall into different banks.
// An element is summed in float32 over its rows in their order, 16 at a time, wherever its tile
// lies: neither ranges of columns nor the sets beside it change its bits.
#include <algorithm>
#include <vector>

#include "kernels/cuda_handles.h"
#include "kernels/hessian.h"
#include "kernels/vector_cuda.h"
#include "kernels/wgmma_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int tile = 128;
constexpr int line = wgmma_line;  // 64 columns
constexpr int threads = wgmma_threads;
constexpr int warps = threads / 32;
constexpr int k_step = wgmma_depth;  // rows of a matrix instruction
constexpr int sums = tile * tile / threads;
constexpr int alignment = wgmma_alignment;  // of a strip, for the exchange of chunks

struct Term {
  const __nv_bfloat16* x;
  const std::int32_t* source;  // or null
  const std::int32_t* exponent;
  std::int64_t* sum;
  std::int64_t stride;
  std::int64_t sum_stride;
  int rows;
  int d;
  int begin;
  int end;
  int slots;
  int log2_tokens;
  int first_tile;
  bool vectors;  // chunks of 16 bytes of x can be read at once
  bool pairs;    // and of two neighbours of the sum
};

// What one launch takes along as its parameters.
constexpr int terms_per_launch = 32;
struct Terms {
  Term term[terms_per_launch];
  int count;
};

__host__ __device__ inline int tiles_of(int elements) { return (elements + tile - 1) / tile; }

// Tiles with elements i ≥ j: column J of tiles has those from row J on.
int lower_tiles(int rows, int cols) {
  int tiles = 0;
  for (int j = 0; j < tiles_of(cols); ++j) tiles += tiles_of(rows) - j;
  return tiles;
}

struct Place {
  int row;
  int col;
};

__device__ Place place_of(const Term& term, int index) {
  int column = 0;
  for (int rows = tiles_of(term.d - term.begin); index >= rows - column; ++column)
    index -= rows - column;
  return {term.begin + (column + index) * tile, term.begin + column * tile};
}

// 16 bytes from a row's columns [column, column + 8) into shared memory; zeros from column d on and
// where there is no row.
__device__ void copy_chunk(std::uint32_t to, const __nv_bfloat16* row, int column,
                           const Term& term) {
  const bool inside = row != nullptr && column < term.d;
  if (term.vectors) {
    const void* from = inside ? row + column : term.x;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
    return;
  }
  unsigned word[4] = {};
#pragma unroll
  for (int i = 0; i < vector_elements; ++i)
    if (inside && column + i < term.d)
      word[i / 2] |= unsigned{__bfloat16_as_ushort(row[column + i])} << (i % 2 * 16);
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(word[0]), "r"(word[1]),
               "r"(word[2]), "r"(word[3])
               : "memory");
}

__device__ std::uint32_t chunk_offset(int depth, int row, int chunk) {
  return (chunk / 8 * depth + row) * line + ((chunk ^ row) % 8) * 16;
}

// Rows [first, first + depth) of the tile's columns: left for its rows' elements, right for its
// columns'; on the diagonal they are the same.
template <int depth>
__device__ void load_slice(const Term& term, Place place, int first, std::uint32_t left,
                           std::uint32_t right) {
  constexpr int own = depth / warps;  // rows of a warp
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = first + warp * own + lane % own;
  unsigned long long address = 0;
  if (row < term.rows) {
    const std::int64_t at = term.source == nullptr ? row : term.source[row] / term.slots;
    address = reinterpret_cast<unsigned long long>(term.x + at * term.stride);
  }
#pragma unroll
  for (int i = 0; i < own; i += 2) {  // two rows at a time, 16 chunks of each
    const int mine = i + lane / 16;
    const int chunk = lane % 16;
    const auto* from =
        reinterpret_cast<const __nv_bfloat16*>(__shfl_sync(0xffffffffu, address, mine));
    const std::uint32_t offset = chunk_offset(depth, warp * own + mine, chunk);
    copy_chunk(right + offset, from, place.col + chunk * vector_elements, term);
    if (left != right) copy_chunk(left + offset, from, place.row + chunk * vector_elements, term);
  }
}

#if QPIPE_WGMMA
template <int depth>
__device__ __forceinline__ void multiply_slice(std::uint32_t left, std::uint32_t right,
                                               float (&sum)[sums]) {
  const auto multiply = [](float* c, std::uint64_t a, std::uint64_t b) {
    wgmma_64x128<__nv_bfloat16, Along::other, Along::other>(c, a, b, true);
  };
  keep_in_place(sum);
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < depth; k += k_step) {
    const std::uint64_t b = wgmma_lines_of_others(right + k * line, depth);
    multiply(sum, wgmma_lines_of_others(left + k * line, depth), b);
    multiply(sum + sums / 2, wgmma_lines_of_others(left + (depth + k) * line, depth), b);
  }
  wgmma_commit();
  keep_in_place(sum);
}
#else
__device__ void load_matrices(unsigned (&m)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// A warp has 64 × 64 of the tile's elements: four times eight of the instruction's 16 × 8.
template <int depth>
__device__ __forceinline__ void multiply_slice(std::uint32_t left, std::uint32_t right,
                                               float (&sum)[sums]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int low = lane / 8 % 2;
  const int high = lane / 16;
#pragma unroll
  for (int k = 0; k < depth; k += k_step) {
    unsigned a[4][4];  // of each 16 rows of the tile: (k 0–7, rows 0–7), (k 0–7, 8–15), (k 8–15, …)
    unsigned b[4][4];  // of each 16 columns: (k 0–7, columns 0–7), (k 8–15, 0–7), (k 0–7, 8–15), …
#pragma unroll
    for (int i = 0; i < 4; ++i)
      load_matrices(
          a[i], left + chunk_offset(depth, k + 8 * high + lane % 8, warp / 2 * 8 + 2 * i + low));
#pragma unroll
    for (int j = 0; j < 4; ++j)
      load_matrices(
          b[j], right + chunk_offset(depth, k + 8 * low + lane % 8, warp % 2 * 8 + 2 * j + high));
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float* c = sum + (i * 8 + j) * 4;
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j / 2][j % 2 * 2]),
              "r"(b[j / 2][j % 2 * 2 + 1]));
      }
  }
}
#endif

// Where in the tile a thread's four elements number `part` lie: (r, c), (r, c + 1), (r + 8, c),
// (r + 8, c + 1).
__device__ Place elements_of(int part) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#if QPIPE_WGMMA
  const Place first{part / 16 * 64 + warp * 16, part % 16 * 8};
#else
  const Place first{warp / 2 * 64 + part / 8 * 16, warp % 2 * 64 + part % 8 * 8};
#endif
  return {first.row + lane / 4, first.col + lane % 4 * 2};
}

// rint(x / 2^unit) in integers: double precision is slow on many devices. |x| < 2^(unit + 62).
__device__ long long fixed_point(float x, int unit) {
  const int bits = __float_as_int(x);
  const int exponent = bits >> 23 & 0xff;
  const long long mantissa = (bits & 0x7fffff) | (exponent > 0 ? 0x800000 : 0);
  const int shift = max(exponent, 1) - 150 - unit;
  long long value = 0;
  if (shift >= 0) {
    value = mantissa << min(shift, 62);
  } else if (shift > -26) {
    value = mantissa >> -shift;
    const long long rest = mantissa - (value << -shift);
    const long long half = 1ll << (-shift - 1);
    value += rest > half || (rest == half && value % 2 != 0);
  }
  return bits < 0 ? -value : value;
}

// Products of half of a tile's rows come to the sums by way of shared memory: a warp adds to
// neighbours of one row at a time, 16 bytes a lane and access.
constexpr int half_rows = tile / 2;
constexpr int staged_stride = tile + 8;  // two rows of a fragment fall into different banks
constexpr int staged_bytes = half_rows * staged_stride * 4;
constexpr int lane_columns = tile / 32;

__device__ __forceinline__ void stage_half(int half, const float (&product)[sums], float* staged) {
#pragma unroll
  for (int part = 0; part < sums / 4; ++part) {
    const Place own = elements_of(part);
    if (own.row / half_rows != half) continue;
    float* to = staged + own.row % half_rows * staged_stride + own.col;
    *reinterpret_cast<float2*>(to) = {product[part * 4], product[part * 4 + 1]};
    *reinterpret_cast<float2*>(to + 8 * staged_stride) = {product[part * 4 + 2],
                                                          product[part * 4 + 3]};
  }
}

// Rows [row, row + count) of the sum, from the lane's first column `col` on.
template <int count>
__device__ __forceinline__ void add_rows(const Term& term, int row, int col, const float* staged,
                                         const int (&exponent)[lane_columns]) {
  longlong2 value[count][lane_columns / 2];
  const auto at = [&](int i) {
    return term.sum + (i - term.begin) * term.sum_stride + (col - term.begin);
  };
  const auto whole = [&](int i) {
    return term.pairs && i < term.d && col + lane_columns <= term.end &&
           col + lane_columns <= i + 1;
  };
#pragma unroll
  for (int r = 0; r < count; ++r)
    if (whole(row + r))
#pragma unroll
      for (int p = 0; p < lane_columns / 2; ++p)
        value[r][p] = reinterpret_cast<const longlong2*>(at(row + r))[p];
#pragma unroll
  for (int r = 0; r < count; ++r) {
    const int i = row + r;
    if (i >= term.d) continue;
    const int unit = term.exponent[i] + term.log2_tokens - 62;
    const float4 product = *reinterpret_cast<const float4*>(staged + r * staged_stride);
    const long long added[lane_columns] = {
        fixed_point(product.x, unit + exponent[0]), fixed_point(product.y, unit + exponent[1]),
        fixed_point(product.z, unit + exponent[2]), fixed_point(product.w, unit + exponent[3])};
    if (whole(i)) {
#pragma unroll
      for (int p = 0; p < lane_columns / 2; ++p)
        reinterpret_cast<longlong2*>(at(i))[p] = {value[r][p].x + added[2 * p],
                                                  value[r][p].y + added[2 * p + 1]};
    } else {
#pragma unroll
      for (int c = 0; c < lane_columns; ++c)
        if (col + c < term.end && col + c <= i) at(i)[c] += added[c];
    }
  }
}

__device__ __forceinline__ void add_to_sum(const Term& term, Place place,
                                           const float (&product)[sums], float* staged) {
  constexpr int at_once = 4;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first = static_cast<int>(threadIdx.x) % 32 * lane_columns;
  const int col = place.col + first;
  int exponent[lane_columns];
#pragma unroll
  for (int c = 0; c < lane_columns; ++c)
    exponent[c] = col + c < term.end ? term.exponent[col + c] : 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    __syncthreads();  // the slices, or the other half, have been read
    stage_half(half, product, staged);
    __syncthreads();
    for (int row = warp * half_rows / warps; row < (warp + 1) * half_rows / warps; row += at_once)
      add_rows<at_once>(term, place.row + half * half_rows + row, col,
                        staged + row * staged_stride + first, exponent);
  }
}

template <int depth, int stages>
__global__ __launch_bounds__(threads, 2) void add_products(const __grid_constant__ Terms terms) {
  extern __shared__ unsigned char dynamic[];
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(dynamic));
  const std::uint32_t memory = (address + alignment - 1) / alignment * alignment;
  const int block = static_cast<int>(blockIdx.x);
  int number = 0;
  while (number + 1 < terms.count && block >= terms.term[number + 1].first_tile) ++number;
  const Term& term = terms.term[number];
  const Place place = place_of(term, block - term.first_tile);

  constexpr int half = depth * tile * 2;  // bytes of one operand
  const auto right_of = [&](int slice) { return memory + slice % stages * 2 * half; };
  const auto left_of = [&](int slice) {
    return right_of(slice) + (place.row == place.col ? 0 : half);
  };
  // A product of wgmma is still at work while the next is started: its slice stays as long.
  constexpr int ahead = stages - (QPIPE_WGMMA ? 2 : 1);
  const int slices = (term.rows + depth - 1) / depth;
  const auto load = [&](int slice) {
    if (slice < slices)
      load_slice<depth>(term, place, slice * depth, left_of(slice), right_of(slice));
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float sum[sums] = {};
  for (int slice = 0; slice < ahead; ++slice) load(slice);
  for (int slice = 0; slice < slices; ++slice) {
    asm volatile("cp.async.wait_group %0;" ::"n"(ahead - 1) : "memory");
#if QPIPE_WGMMA
    wgmma_see_writes();
#endif
    __syncthreads();
    load(slice + ahead);
    multiply_slice<depth>(left_of(slice), right_of(slice), sum);
#if QPIPE_WGMMA
    wgmma_wait<1>();
#endif
  }
#if QPIPE_WGMMA
  wgmma_wait<0>();
  keep_in_place(sum);
#endif
  add_to_sum(term, place, sum, reinterpret_cast<float*>(dynamic + (memory - address)));
}

template <int depth, int stages>
void launch(const Terms& terms, int tiles, Stream& stream) {
  constexpr int bytes = stages * depth * tile * 2 * 2 + alignment;
  static_assert(staged_bytes <= bytes - alignment);
  check(cudaFuncSetAttribute(add_products<depth, stages>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  add_products<depth, stages><<<tiles, threads, bytes, stream.cuda().stream>>>(terms);
  check_launch();
}

}  // namespace

void accumulate_hessians(const std::vector<HessianRows>& all, Stream& stream) {
  int shared = 0;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device()));
  for (std::size_t first = 0; first < all.size(); first += terms_per_launch) {
    Terms terms{};
    int tiles = 0;
    for (std::size_t i = first; i < std::min(all.size(), first + terms_per_launch); ++i) {
      const HessianRows& rows = all[i];
      Term& term = terms.term[terms.count];
      const auto integer = [](std::int64_t value) { return static_cast<int>(value); };
      term = {static_cast<const __nv_bfloat16*>(rows.x.data),
              rows.source.data,
              rows.exponent.data,
              rows.sum.data,
              rows.x.stride,
              rows.sum.stride,
              integer(rows.rows()),
              integer(rows.x.cols),
              integer(rows.begin),
              integer(rows.begin + rows.sum.cols),
              integer(rows.slots),
              rows.log2_tokens,
              tiles,
              vectorizable(rows.x),
              aligned16(rows.sum.data) && rows.sum.stride % 2 == 0};
      if (rows.rows() == 0 || rows.sum.cols == 0) continue;
      tiles += lower_tiles(term.d - term.begin, term.end - term.begin);
      ++terms.count;
    }
    if (tiles == 0) continue;
    // Two blocks to a multiprocessor, where it has the memory.
    if (shared >= 160 << 10)
      launch<32, 6>(terms, tiles, stream);
    else
      launch<32, 3>(terms, tiles, stream);
  }
}

}  // namespace qpipe::cuda
