#include <algorithm>

#include "kernels/cuda_handles.h"
#include "kernels/linears_wgmma.h"
#include "kernels/vector_cuda.h"
#include "kernels/wgmma_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int tile_rows = 128;  // of y: 64 for each of two warpgroups
constexpr int tile_cols = 256;
constexpr int threads = 2 * wgmma_threads;
constexpr int stages = 4;
constexpr int x_bytes = tile_rows * wgmma_line;
constexpr int stage_bytes = x_bytes + tile_cols * wgmma_line;
constexpr int staged_stride = tile_cols + 8;  // of results: eight rows in different banks
constexpr int shared_bytes = stages * stage_bytes + wgmma_alignment;
static_assert(tile_rows * staged_stride * 2 <= stages * stage_bytes);

struct Term {
  const __nv_bfloat16* x;
  const __nv_bfloat16* weight;
  const __nv_bfloat16* bias;  // or null
  __nv_bfloat16* y;
  std::int64_t x_stride;
  std::int64_t weight_stride;
  std::int64_t y_stride;
  int rows;
  int in;
  int out;
  int first_tile;
};

// What one launch takes along as its parameters.
constexpr int terms_per_launch = 32;
struct Terms {
  Term term[terms_per_launch];
  int count;
};

int tiles_of(std::int64_t elements, int tile) {
  return static_cast<int>((elements + tile - 1) / tile);
}

__device__ const bool compiled_for_wgmma = QPIPE_WGMMA != 0;

#if QPIPE_WGMMA

constexpr int depth = 64;          // k at a time: a line
constexpr int ahead = stages - 2;  // a product is still at work while the next is started

// `lines` rows of a matrix, k0 on; zeros where there are none.
template <int lines>
__device__ __forceinline__ void load_lines(const __nv_bfloat16* from, std::int64_t stride,
                                           int first, int end, int k0, int in, std::uint32_t to) {
#pragma unroll
  for (int i = 0; i < lines * 8 / threads; ++i) {
    const int index = static_cast<int>(threadIdx.x) + threads * i;
    const int line = index / 8;
    const int chunk = index % 8;
    const int k = k0 + chunk * vector_elements;
    const bool inside = first + line < end && k < in;
    const void* source = inside ? from + (first + line) * stride + k : from;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + line * wgmma_line +
                                                                       (chunk ^ line % 8) * 16),
                 "l"(source), "r"(inside ? 16 : 0)
                 : "memory");
  }
}

constexpr int half_sums = 64 * 128 / wgmma_threads;

// The tile's columns 128 `half` on, rounded, in shared memory.
__device__ __forceinline__ void stage_half(int half, const float (&sum)[half_sums],
                                           const Term& term, int col0, __nv_bfloat16* staged) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < half_sums / 4; ++j) {
    const int col = half * 128 + j * 8 + lane % 4 * 2;
    float2 bias{0.0f, 0.0f};
    if (term.bias != nullptr && col0 + col < term.out)
      bias = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(term.bias + col0 + col));
#pragma unroll
    for (int below = 0; below < 2; ++below)
      *reinterpret_cast<__nv_bfloat162*>(staged + (row + 8 * below) * staged_stride + col) =
          __floats2bfloat162_rn(sum[4 * j + 2 * below] + bias.x,
                                sum[4 * j + 2 * below + 1] + bias.y);
  }
}

#endif

__global__ __launch_bounds__(threads, 1) void multiply(const __grid_constant__ Terms terms) {
#if QPIPE_WGMMA
  extern __shared__ unsigned char dynamic[];
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(dynamic));
  const std::uint32_t memory = (address + wgmma_alignment - 1) / wgmma_alignment * wgmma_alignment;
  const int block = static_cast<int>(blockIdx.x);
  int number = 0;
  while (number + 1 < terms.count && block >= terms.term[number + 1].first_tile) ++number;
  const Term& term = terms.term[number];
  const int tiles_down = (term.rows + tile_rows - 1) / tile_rows;
  const int row0 = (block - term.first_tile) % tiles_down * tile_rows;
  const int col0 = (block - term.first_tile) / tiles_down * tile_cols;

  const int slices = (term.in + depth - 1) / depth;
  const auto load = [&](int slice) {
    const std::uint32_t to = memory + slice % stages * stage_bytes;
    if (slice < slices) {
      load_lines<tile_rows>(term.x, term.x_stride, row0, term.rows, slice * depth, term.in, to);
      load_lines<tile_cols>(term.weight, term.weight_stride, col0, term.out, slice * depth, term.in,
                            to + x_bytes);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  const int own_lines = static_cast<int>(threadIdx.x) / wgmma_threads * 64 * wgmma_line;
  float left_half[half_sums] = {};
  float right_half[half_sums] = {};
  for (int slice = 0; slice < ahead; ++slice) load(slice);
  for (int slice = 0; slice < slices; ++slice) {
    asm volatile("cp.async.wait_group %0;" ::"n"(ahead - 1) : "memory");
    wgmma_see_writes();
    __syncthreads();
    load(slice + ahead);
    const std::uint32_t stage = memory + slice % stages * stage_bytes;
    keep_in_place(left_half);
    keep_in_place(right_half);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < depth; k += wgmma_depth) {
      const auto multiply_half = [&](int half, float* sum) {
        wgmma_64x128<__nv_bfloat16, Along::k, Along::k>(
            sum, wgmma_lines_of_k(stage + own_lines + 2 * k),
            wgmma_lines_of_k(stage + x_bytes + half * 128 * wgmma_line + 2 * k), true);
      };
      multiply_half(0, left_half);
      multiply_half(1, right_half);
    }
    wgmma_commit();
    keep_in_place(left_half);
    keep_in_place(right_half);
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  keep_in_place(left_half);
  keep_in_place(right_half);

  auto* const staged = reinterpret_cast<__nv_bfloat16*>(dynamic + (memory - address));
  __syncthreads();  // the last slice has been read
  stage_half(0, left_half, term, col0, staged);
  stage_half(1, right_half, term, col0, staged);
  __syncthreads();
#pragma unroll 4
  for (int index = static_cast<int>(threadIdx.x); index < tile_rows * tile_cols / vector_elements;
       index += threads) {
    const int row = index / (tile_cols / vector_elements);
    const int col = index % (tile_cols / vector_elements) * vector_elements;
    if (row0 + row < term.rows && col0 + col < term.out)
      *reinterpret_cast<uint4*>(term.y + (row0 + row) * term.y_stride + col0 + col) =
          *reinterpret_cast<const uint4*>(staged + row * staged_stride + col);
  }
#endif
}

}  // namespace

bool has_linears_wgmma(Stream& stream) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, stream.device()));
  if (major != 9) return false;
  static const bool compiled = [] {
    bool value = false;
    check(cudaMemcpyFromSymbol(&value, compiled_for_wgmma, sizeof value));
    return value;
  }();
  return compiled;
}

void linears_wgmma(const std::vector<Product>& products, Stream& stream) {
  check(cudaFuncSetAttribute(multiply, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  for (std::size_t first = 0; first < products.size(); first += terms_per_launch) {
    Terms terms{};
    int tiles = 0;
    for (std::size_t i = first; i < std::min(products.size(), first + terms_per_launch); ++i) {
      const Product& p = products[i];
      const auto integer = [](std::int64_t value) { return static_cast<int>(value); };
      const auto read = [](const ConstTensor& t) {
        return static_cast<const __nv_bfloat16*>(t.data);
      };
      terms.term[terms.count++] = {read(p.x),
                                   read(p.weight),
                                   p.bias.empty() ? nullptr : read(p.bias),
                                   static_cast<__nv_bfloat16*>(p.y.data),
                                   p.x.stride,
                                   p.weight.stride,
                                   p.y.stride,
                                   integer(p.y.rows),
                                   integer(p.x.cols),
                                   integer(p.y.cols),
                                   tiles};
      tiles += tiles_of(p.y.rows, tile_rows) * tiles_of(p.y.cols, tile_cols);
    }
    multiply<<<static_cast<unsigned>(tiles), threads, shared_bytes, stream.cuda().stream>>>(terms);
    check_launch();
  }
}

}  // namespace qpipe::cuda
