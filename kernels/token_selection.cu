#include "kernels/cuda_handles.h"
#include "kernels/token_selection.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int threads = 256;
constexpr int warp = 32;
constexpr int widest_key = 128;
constexpr int digits = 256;  // of the radix by which the smallest chosen score is found
constexpr unsigned all_lanes = 0xffffffffu;

// Scores as unsigned integers in the same order; −0 is as +0.
__device__ unsigned ordered(float score) {
  const unsigned bits = __float_as_uint(score + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Digit by digit from the most significant: the value of the top_k-th largest of keys[0 … count),
// and how many of those that equal it are chosen.
__device__ void smallest_chosen(const unsigned* keys, int count, int top_k, int* histogram,
                                unsigned& value, int& of_equal) {
  __shared__ unsigned prefix;
  __shared__ int left;
  if (threadIdx.x == 0) {
    prefix = 0;
    left = top_k;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < digits; i += threads) histogram[i] = 0;
    __syncthreads();
    const unsigned above = shift == 24 ? 0u : prefix >> (shift + 8);
    for (int j = static_cast<int>(threadIdx.x); j < count; j += threads)
      if (shift == 24 || keys[j] >> (shift + 8) == above)
        atomicAdd(&histogram[keys[j] >> shift & 255u], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = digits - 1;
      while (histogram[digit] < left) left -= histogram[digit--];
      prefix |= static_cast<unsigned>(digit) << shift;
    }
    __syncthreads();
  }
  value = prefix;
  of_equal = left;
}

// One block for a token t. Shared memory: its q [heads, d], weights [heads], the scores' keys
// [t + 1], the histogram.
__global__ __launch_bounds__(threads) void select_tokens_kernel(
    const __nv_bfloat16* q, std::int64_t q_stride, const __nv_bfloat16* k, std::int64_t k_stride,
    const __nv_bfloat16* weight, std::int64_t weight_stride, int heads, int d, int top_k,
    std::uint32_t* selected, std::int64_t selected_stride, int words) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int t = static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);
  const int pairs = d / 2;
  auto* const query = reinterpret_cast<__nv_bfloat162*>(memory);
  auto* const weights = reinterpret_cast<float*>(query + heads * pairs);
  auto* const histogram = reinterpret_cast<int*>(weights + heads);
  auto* const keys = reinterpret_cast<unsigned*>(histogram + digits);
  const int count = t + 1;
  std::uint32_t* const row = selected + t * selected_stride;
  const bool all = count <= top_k;
  if (!all) {
    for (int i = static_cast<int>(threadIdx.x); i < heads * d; i += threads)
      reinterpret_cast<__nv_bfloat16*>(query)[i] = q[t * q_stride + i];
    for (int h = static_cast<int>(threadIdx.x); h < heads; h += threads)
      weights[h] = __bfloat162float(weight[t * weight_stride + h]);
    __syncthreads();
    for (int j = static_cast<int>(threadIdx.x); j < count; j += threads) {
      __nv_bfloat16 key[widest_key];
#pragma unroll
      for (int i = 0; i < widest_key; ++i)
        key[i] = i < d ? k[j * k_stride + i] : __float2bfloat16_rn(0.0f);
      float score = 0.0f;
      for (int h = 0; h < heads; ++h) {
        float product = 0.0f;
#pragma unroll
        for (int i = 0; i < widest_key / 2; ++i)
          if (i < pairs) {
            const float2 pair = __bfloat1622float2(query[h * pairs + i]);
            product = fmaf(pair.x, __bfloat162float(key[2 * i]), product);
            product = fmaf(pair.y, __bfloat162float(key[2 * i + 1]), product);
          }
        score = fmaf(weights[h], fmaxf(0.0f, product), score);
      }
      keys[j] = ordered(score);
    }
    __syncthreads();
  }
  unsigned smallest = 0;
  int of_equal = 0;
  if (!all) smallest_chosen(keys, count, top_k, histogram, smallest, of_equal);

  if (threadIdx.x >= warp) return;
  const int lane = static_cast<int>(threadIdx.x);
  int equal_before = 0;
  for (int word = 0; word < words; ++word) {
    const int j = word * warp + lane;
    const bool there = j < count;
    const bool greater = there && (all || keys[j] > smallest);
    const unsigned equal = __ballot_sync(all_lanes, there && !all && keys[j] == smallest);
    const int rank = equal_before + __popc(equal & ((1u << lane) - 1u));
    const bool tied = (equal >> lane & 1u) != 0 && rank < of_equal;
    const unsigned bits = __ballot_sync(all_lanes, greater || tied);
    if (lane == 0) row[word] = bits;
    equal_before += __popc(equal);
  }
}

}  // namespace

void select_tokens(ConstTensor q, ConstTensor k, ConstTensor weight, std::int64_t top_k,
                   Matrix<std::uint32_t> selected, Stream& stream) {
  if (q.rows == 0) return;
  require(k.cols <= widest_key && k.cols % 2 == 0,
          "select_tokens: on CUDA d must be even, at most 128");
  const std::int64_t heads = weight.cols;
  const std::int64_t bytes = 2 * heads * k.cols + 4 * (heads + digits + q.rows);
  constexpr std::int64_t most_bytes = 220 * 1024;
  require(bytes <= most_bytes, "select_tokens: more tokens than shared memory holds");
  check(cudaFuncSetAttribute(select_tokens_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)));
  select_tokens_kernel<<<static_cast<unsigned>(q.rows), threads, static_cast<std::size_t>(bytes),
                         stream.cuda().stream>>>(
      static_cast<const __nv_bfloat16*>(q.data), q.stride,
      static_cast<const __nv_bfloat16*>(k.data), k.stride,
      static_cast<const __nv_bfloat16*>(weight.data), weight.stride, static_cast<int>(heads),
      static_cast<int>(k.cols), static_cast<int>(std::min(top_k, q.rows)), selected.data,
      selected.stride, static_cast<int>(selected.cols));
  check_launch();
}

}  // namespace qpipe::cuda
