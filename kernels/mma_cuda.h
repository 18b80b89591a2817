// Products of 16 × 8 tiles by tensor cores, and what brings their operands from shared memory.
// Included by .cu files only.
#pragma once

#include <cuda_bf16.h>

namespace qpipe::cuda {

inline __device__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes in the background, or writes zeros.
inline __device__ void copy_or_zero(unsigned to, const void* from, bool copy) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(copy ? 16 : 0)
               : "memory");
}
inline __device__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

inline __device__ void load_matrices(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
inline __device__ void load_transposed(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// c += a b for a 16 x 16 and b 16 x 8. With g = lane / 4 and i = lane % 4, a lane has of a the
// elements (g, 2i), (g + 8, 2i), (g, 2i + 8), (g + 8, 2i + 8) and their right neighbours, of b (2i,
// g), (2i + 8, g) and their lower neighbours, of c (g, 2i), (g, 2i + 1), (g + 8, 2i), (g + 8, 2i +
// 1).
inline __device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

inline __device__ float exp2_approx(float x) {  // 2 ulp; exp2(−inf) = 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two neighbours of a fragment, rounded to bfloat16, and back.
inline __device__ unsigned pack(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&both);
}
inline __device__ float2 unpack(unsigned both) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&both));
}

}  // namespace qpipe::cuda
