// Hopper's products of matrices in shared memory by a warpgroup of 128 threads (PTX ISA,
// "Asynchronous Warpgroup Level Matrix Instructions"). Included by .cu files only; QPIPE_WGMMA says
// whether the code that is being compiled has them.
//
// Operands lie in lines of 128 bytes, 64 numbers of 16 bits, in which chunk c of 16 bytes stands at
// c ^ (line mod 8); every eight lines begin at a multiple of 1024 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define QPIPE_WGMMA 1
#else
#define QPIPE_WGMMA 0
#endif

namespace qpipe::cuda {

inline constexpr int wgmma_line = 128;        // bytes
inline constexpr int wgmma_alignment = 1024;  // bytes
inline constexpr int wgmma_threads = 128;
inline constexpr int wgmma_depth = 16;  // k of one instruction

// Along a line goes k, or the rows of A or the columns of B.
enum class Along { k, other };

#if QPIPE_WGMMA

namespace wgmma_detail {
__device__ inline std::uint64_t units(std::uint32_t bytes) {
  return std::uint64_t{(bytes & 0x3ffffu) >> 4};
}
}  // namespace wgmma_detail

// Lines of 64 k, a line each row of A or column of B, from the line at `address`'s 1024 on; k0 / 16
// instructions into the lines: address + 2 k0.
__device__ inline std::uint64_t wgmma_lines_of_k(std::uint32_t address) {
  return wgmma_detail::units(address) | std::uint64_t{1} << 16 |
         wgmma_detail::units(8 * wgmma_line) << 32 | std::uint64_t{1} << 62;
}

// A line each k, of 64 rows of A or columns of B; the next 64 of them `lines` lines further.
__device__ inline std::uint64_t wgmma_lines_of_others(std::uint32_t address, int lines) {
  return wgmma_detail::units(address) | wgmma_detail::units(lines * wgmma_line) << 16 |
         wgmma_detail::units(8 * wgmma_line) << 32 | std::uint64_t{1} << 62;
}

// The sums are neither read nor written by other instructions from before to after this.
template <int count>
__device__ __forceinline__ void keep_in_place(float (&sum)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int most>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(most) : "memory");
}
// What this thread wrote to shared memory, cp.async included, is there for wgmma.
__device__ __forceinline__ void wgmma_see_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// c [64, 128] ← (add ? c : 0) + A [64, 16] B [16, 128]. Of warp w and lane l of the warpgroup,
// c[4 j + i] is row 16 w + l / 4 + 8 (i / 2), column 8 j + 2 (l % 4) + i % 2.
template <class T, Along a, Along b>
__device__ __forceinline__ void wgmma_64x128(float* c, std::uint64_t left, std::uint64_t right,
                                             bool add) {
#define QPIPE_FOUR(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define QPIPE_SIXTEEN(i) QPIPE_FOUR(i), QPIPE_FOUR(i + 4), QPIPE_FOUR(i + 8), QPIPE_FOUR(i + 12)
#define QPIPE_WGMMA_64x128(type)                                                          \
  asm volatile(                                                                           \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                    \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                        \
      " {"                                                                                \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "            \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
      "%64, %65, add, 1, 1, %67, %68;\n}"                                                 \
      : QPIPE_SIXTEEN(0), QPIPE_SIXTEEN(16), QPIPE_SIXTEEN(32), QPIPE_SIXTEEN(48)         \
      : "l"(left), "l"(right), "r"(int{add}), "n"(int{a == Along::other}),                \
        "n"(int{b == Along::other}))
  if constexpr (std::is_same_v<T, __half>)
    QPIPE_WGMMA_64x128("f16");
  else
    QPIPE_WGMMA_64x128("bf16");
#undef QPIPE_WGMMA_64x128
#undef QPIPE_SIXTEEN
#undef QPIPE_FOUR
}

#endif

}  // namespace qpipe::cuda
