#include <cmath>

#include "kernels/attention.h"
#include "kernels/cuda_handles.h"
#include "kernels/mma_cuda.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

// The columns of HeadLayout, for the device.
struct Columns {
  std::int64_t q_group_stride;
  std::int64_t kv_stride;
  std::int64_t k_begin;
  std::int64_t v_begin;
  int heads;
  int kv_heads;
  int group;
  int q_block;
  int kv_block;
};

Columns columns_of(const HeadLayout& layout) {
  return {layout.q_group_stride,
          layout.kv_stride,
          layout.k_begin,
          layout.v_begin,
          static_cast<int>(layout.heads),
          static_cast<int>(layout.kv_heads),
          static_cast<int>(layout.group()),
          static_cast<int>(layout.heads_of_q_block()),
          static_cast<int>(layout.heads_of_kv_block())};
}

__device__ std::int64_t q_column(const Columns& c, int head, int head_dim) {
  return head / c.q_block * c.q_group_stride + std::int64_t{head % c.q_block} * head_dim;
}

// From the first k or v head to another; width is head_dim or v_dim.
__device__ std::int64_t kv_column(const Columns& c, int kv_head, int width) {
  return kv_head / c.kv_block * c.kv_stride + std::int64_t{kv_head % c.kv_block} * width;
}

// ---- rotary positions

constexpr int rope_threads = 256;

// One block a row. The row's cosines and sines are computed once, in shared memory, and used by all
// heads. A thread turns `count` pairs (half-split) or `count / 2` neighbouring pairs (interleaved)
// at a time.
template <int count, bool interleaved>
__global__ __launch_bounds__(rope_threads) void rope_kernel(__nv_bfloat16* qkv, std::int64_t stride,
                                                            Columns columns, int head_dim,
                                                            const float* inverse_frequencies,
                                                            int half, float amplitude,
                                                            std::int64_t seqlen) {
  extern __shared__ float table[];
  float* cosine = table;
  float* sine = table + half;
  const std::int64_t row = blockIdx.x;
  const auto position = static_cast<float>(row % seqlen);
  for (int i = threadIdx.x; i < half; i += rope_threads) {
    float s;
    float c;
    sincosf(position * inverse_frequencies[i], &s, &c);
    cosine[i] = amplitude * c;
    sine[i] = amplitude * s;
  }
  __syncthreads();

  const int per_head = (interleaved ? 2 * half : half) / count;
  const int items = (columns.heads + columns.kv_heads) * per_head;
  for (int item = threadIdx.x; item < items; item += rope_threads) {
    const int head = item / per_head;
    const int i = (item - head * per_head) * count;
    const std::int64_t column =
        head < columns.heads ? q_column(columns, head, head_dim)
                             : columns.k_begin + kv_column(columns, head - columns.heads, head_dim);
    __nv_bfloat16* x = qkv + row * stride + column + i;
    float a[count];
    load(x, a);
    if constexpr (interleaved) {
#pragma unroll
      for (int k = 0; k < count; k += 2) {
        const float c = cosine[(i + k) / 2];
        const float s = sine[(i + k) / 2];
        const float first = a[k];
        const float second = a[k + 1];
        a[k] = first * c - second * s;
        a[k + 1] = second * c + first * s;
      }
    } else {
      float b[count];
      load(x + half, b);
#pragma unroll
      for (int k = 0; k < count; ++k) {
        const float c = cosine[i + k];
        const float s = sine[i + k];
        const float first = a[k];
        a[k] = first * c - b[k] * s;
        b[k] = b[k] * c + first * s;
      }
      store(b, x + half);
    }
    store(a, x);
  }
}

// ---- attention
//
// One block of four warps computes query_rows rows of one head of one sample, walking the key tiles
// (key_rows keys) from the diagonal back to the first key that is seen. With running row maxima m
// and sums l:
//   S = Q Kᵀ,  m' = max(m, rowmax S),  P = exp(S − m'),  l ← l e^(m − m') + rowsum P,  O ← O e^(m −
//   m') + P V;  at the end O / (l + e^(sink − m)).
// A warp owns 16 · m_tiles query rows and keeps S, P and O in registers as fragments of
// mma.m16n8k16; Q, K and V lie in shared memory, rows padded by 16 bytes so that the eight rows of
// an ldmatrix fall into different banks. K of the next tile is copied while softmax and P V run, V
// of this tile while Q Kᵀ runs. This is FlashAttention-2 (Dao 2023). Heads are padded with zeros to
// d columns of Q and K and dv of V; where V has more, blockIdx.y chooses dv of them, and S is
// computed for each choice: registers hold no more of O.

constexpr int warp = 32;
constexpr int attention_warps = 4;
constexpr int attention_threads = attention_warps * warp;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr float log2_e = 1.44269504f;

// Blocks that run at the same time should share K and V through the L2 cache: heads are served in
// groups of this many, and within a group the longest query blocks of all heads start first.
constexpr int heads_at_a_time = 16;

struct AttentionArguments {
  const __nv_bfloat16* qkv;
  std::int64_t stride;
  __nv_bfloat16* out;
  std::int64_t out_stride;
  const float* key_bias;  // may be null
  std::int64_t key_bias_stride;
  const float* sinks;             // may be null
  const std::uint32_t* selected;  // may be null
  std::int64_t selected_stride;
  Columns columns;
  int samples;
  int seqlen;
  int head_dim;
  int v_dim;
  int window;  // 1 … seqlen
  int chunk;   // 0: none
  float scale;
  float soft_cap;
  float value_scale;
};

template <int d>
constexpr int row_tiles = d <= 128 ? 2 : 1;  // m_tiles: what the registers hold
template <int d>
constexpr int query_rows = attention_warps * 16 * row_tiles<d>;
template <int d>
constexpr int pitch = d + 8;  // of a row in shared memory, in elements
template <int d>
constexpr int key_rows = d <= 256 ? 64 : 16;  // what 99 KiB of shared memory hold
template <int d, int dv>
constexpr int shared_bytes = (query_rows<d> * pitch<d> + key_rows<d> * (pitch<d> + pitch<dv>)) * 2;

// rows x d elements → shared memory; rows from valid_rows on and columns from valid_columns on
// become zero, and nothing is read for them. Groups of four or eight threads copy neighbouring
// chunks of one row.
template <int d, int rows>
__device__ void copy_tile(unsigned to, const __nv_bfloat16* from, std::int64_t stride,
                          int valid_rows, int valid_columns) {
  constexpr int threads_of_a_row = d % 64 == 0 ? 8 : 4;
  constexpr int rows_at_once = attention_threads / threads_of_a_row;
  static_assert(d % (threads_of_a_row * 8) == 0 && rows % rows_at_once == 0);
  const int first_row = static_cast<int>(threadIdx.x) / threads_of_a_row;
  const int first_column = static_cast<int>(threadIdx.x) % threads_of_a_row * 8;
  from += first_row * stride + first_column;
  to += (first_row * pitch<d> + first_column) * 2;
#pragma unroll
  for (int row = 0; row < rows; row += rows_at_once) {
#pragma unroll
    for (int column = 0; column < d; column += threads_of_a_row * 8)
      copy_or_zero(to + (row * pitch<d> + column) * 2, from + column,
                   first_row + row < valid_rows && first_column + column < valid_columns);
    from += rows_at_once * stride;
  }
}

// The first token of the chunk of a query; 0 without chunks.
__device__ int chunk_begin(const AttentionArguments& p, int query) {
  return p.chunk > 0 ? query - query % p.chunk : 0;
}

// Element i of s[m][n] is the score of query lane_query + 16 m + i / 2 · 8 with key lane_key + 8 n
// + i % 2.
template <int m_tiles, int key_tiles>
__device__ void hide_earlier_chunks(const AttentionArguments& p, float (&s)[m_tiles][key_tiles][4],
                                    int lane_query, int lane_key) {
#pragma unroll
  for (int m = 0; m < m_tiles; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int first_key = chunk_begin(p, lane_query + 16 * m + 8 * h);
#pragma unroll
      for (int n = 0; n < key_tiles; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (lane_key + 8 * n + j < first_key) s[m][n][2 * h + j] = -INFINITY;
    }
}

// The same of keys that are not selected. selected: of the sample's first token.
template <int m_tiles, int key_tiles>
__device__ void hide_unselected(const AttentionArguments& p, const std::uint32_t* selected,
                                float (&s)[m_tiles][key_tiles][4], int lane_query, int lane_key) {
#pragma unroll
  for (int m = 0; m < m_tiles; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int query = min(lane_query + 16 * m + 8 * h, p.seqlen - 1);
      const std::uint32_t* const row = selected + query * p.selected_stride;
#pragma unroll
      for (int n = 0; n < key_tiles; ++n) {
        const int key = min(lane_key + 8 * n, p.seqlen - 1);  // even, as its neighbour's word is
        const std::uint32_t bits = row[key / 32] >> key % 32;
        if ((bits & 1u) == 0) s[m][n][2 * h] = -INFINITY;
        if ((bits & 2u) == 0) s[m][n][2 * h + 1] = -INFINITY;
      }
    }
}

// plain: the scale alone is applied, in the exponent. modified: scale, soft cap and key bias are
// applied to the scores before the softmax, and chunks are regarded. selective: selections, too.
enum class Scores { plain, modified, selective };

template <int d, int dv, Scores scores>
__global__ __launch_bounds__(attention_threads, 2) void attention_kernel(AttentionArguments p) {
  static_assert(dv <= d);  // O leaves through the Q tile
  constexpr bool modified = scores != Scores::plain;
  constexpr bool split = d > 256;
  constexpr int m_tiles = row_tiles<d>;
  constexpr int keys = key_rows<d>;    // of a tile
  constexpr int key_tiles = keys / 8;  // n-tiles of S
  constexpr int dv_tiles = dv / 8;
  constexpr int warp_rows = 16 * m_tiles;
  extern __shared__ __align__(16) unsigned char memory[];
  auto* const q_tile = reinterpret_cast<__nv_bfloat16*>(memory);
  const unsigned q_shared = shared_address(memory);
  const unsigned k_shared = q_shared + query_rows<d> * pitch<d> * 2;
  const unsigned v_shared = k_shared + keys * pitch<d> * 2;

  const int query_blocks = (p.seqlen + query_rows<d> - 1) / query_rows<d>;
  const int pairs = p.samples * p.columns.heads;  // (sample, head)
  const int group = static_cast<int>(blockIdx.x) / (heads_at_a_time * query_blocks);
  const int in_group = static_cast<int>(blockIdx.x) - group * heads_at_a_time * query_blocks;
  const int group_pairs = min(heads_at_a_time, pairs - group * heads_at_a_time);
  const int query_begin = (query_blocks - 1 - in_group / group_pairs) * query_rows<d>;
  const int pair = group * heads_at_a_time + in_group % group_pairs;
  const int head = pair % p.columns.heads;
  const int kv_head = head / p.columns.group;
  const std::int64_t sample_row = std::int64_t{pair / p.columns.heads} * p.seqlen;

  const __nv_bfloat16* const sample = p.qkv + sample_row * p.stride;
  const __nv_bfloat16* const q = sample + q_column(p.columns, head, p.head_dim);
  const __nv_bfloat16* const k =
      sample + p.columns.k_begin + kv_column(p.columns, kv_head, p.head_dim);
  const int v_first = split ? static_cast<int>(blockIdx.y) * dv : 0;  // of the columns of v
  const int v_columns = split ? min(dv, p.v_dim - v_first) : p.v_dim;
  const __nv_bfloat16* const v =
      sample + p.columns.v_begin + kv_column(p.columns, kv_head, p.v_dim) + v_first;

  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int warp_row = static_cast<int>(threadIdx.x) / warp * warp_rows;  // in the query tile
  const int first_query = query_begin + warp_row;  // this warp's rows, in the sample
  const int last_query = min(first_query + warp_rows, p.seqlen) - 1;

  // Lane addresses of ldmatrix: Q and Vᵀ by (row = lane % 16, 8 columns = lane / 16), K by (8 rows
  // = lane / 16, 8 columns = lane / 8 % 2).
  const unsigned q_lane = q_shared + ((warp_row + lane % 16) * pitch<d> + lane / 16 * 8) * 2;
  const unsigned k_lane = k_shared + ((lane / 16 * 8 + lane % 8) * pitch<d> + lane / 8 % 2 * 8) * 2;
  const unsigned v_lane = v_shared + (lane % 16 * pitch<dv> + lane / 16 * 8) * 2;

  float o[m_tiles][dv_tiles][4];
  float row_max[m_tiles][2];
  float row_sum[m_tiles]
               [2];  // of this thread's columns; the four threads of a row are added at the end
#pragma unroll
  for (int m = 0; m < m_tiles; ++m) {
#pragma unroll
    for (int n = 0; n < dv_tiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[m][n][i] = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row_max[m][i] = -INFINITY;
      row_sum[m][i] = 0.0f;
    }
  }
  const float to_exponent = modified ? 1.0f : p.scale * log2_e;  // score → exponent of 2

  const int block_last_query = min(query_begin + query_rows<d>, p.seqlen) - 1;
  const int last_tile = block_last_query / keys;
  int first_key = max(0, query_begin - p.window + 1);
  if constexpr (modified) first_key = max(first_key, chunk_begin(p, query_begin));
  const int first_tile = first_key / keys;
  copy_tile<d, query_rows<d>>(q_shared, q + query_begin * p.stride, p.stride,
                              p.seqlen - query_begin, p.head_dim);
  copy_tile<d, keys>(k_shared, k + last_tile * keys * p.stride, p.stride,
                     p.seqlen - last_tile * keys, p.head_dim);

  for (int tile = last_tile; tile >= first_tile; --tile) {
    const int key_begin = tile * keys;
    // Some row of this warp sees some key of the tile.
    const bool active = key_begin <= last_query && first_query < p.seqlen &&
                        key_begin + keys - 1 > first_query - p.window;

    wait_for_copies();
    __syncthreads();  // K (and Q) are here for all; all are done with V of the tile before
    copy_tile<dv, keys>(v_shared, v + key_begin * p.stride, p.stride, p.seqlen - key_begin,
                        v_columns);

    float s[m_tiles][key_tiles][4] = {};
    if (active) {
#pragma unroll
      for (int step = 0; step < d / 16; ++step) {
        unsigned a[m_tiles][4];
#pragma unroll
        for (int m = 0; m < m_tiles; ++m)
          load_matrices(a[m], q_lane + (m * 16 * pitch<d> + step * 16) * 2);
#pragma unroll
        for (int n = 0; n < key_tiles; n += 2) {
          unsigned b[4];
          load_matrices(b, k_lane + (n * 8 * pitch<d> + step * 16) * 2);
#pragma unroll
          for (int m = 0; m < m_tiles; ++m) {
            multiply_add(s[m][n], a[m], b[0], b[1]);
            multiply_add(s[m][n + 1], a[m], b[2], b[3]);
          }
        }
      }
    }

    wait_for_copies();
    __syncthreads();  // V is here for all; all are done with K
    if (tile > first_tile)
      copy_tile<d, keys>(k_shared, k + (key_begin - keys) * p.stride, p.stride,
                         p.seqlen - key_begin + keys, p.head_dim);
    if (!active) continue;

    const int lane_key =
        key_begin + lane % 4 * 2;  // element i of s[m][n] is key lane_key + 8 n + i % 2 …
    const int lane_query = first_query + lane / 4;  // … of query lane_query + 16 m + i / 2 · 8
    if constexpr (modified) {
#pragma unroll
      for (int n = 0; n < key_tiles; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int key = lane_key + 8 * n + j;
          const float bias = p.key_bias != nullptr && key < p.seqlen
                                 ? p.key_bias[head * p.key_bias_stride + key]
                                 : 0.0f;
#pragma unroll
          for (int m = 0; m < m_tiles; ++m)
#pragma unroll
            for (int i = j; i < 4; i += 2) {
              float score = p.scale * s[m][n][i];
              if (p.soft_cap > 0.0f) score = p.soft_cap * tanhf(score / p.soft_cap);
              s[m][n][i] = (score + bias) * log2_e;
            }
        }
    }
    if (key_begin + keys - 1 > first_query || key_begin <= last_query - p.window) {
#pragma unroll
      for (int m = 0; m < m_tiles; ++m)
#pragma unroll
        for (int n = 0; n < key_tiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int key = lane_key + 8 * n + i % 2;
            const int query = lane_query + 16 * m + i / 2 * 8;
            if (key > query || key <= query - p.window) s[m][n][i] = -INFINITY;
          }
    }

    if constexpr (modified) {
      if (p.chunk > 0 && key_begin < chunk_begin(p, last_query))
        hide_earlier_chunks(p, s, lane_query, lane_key);
      if constexpr (scores == Scores::selective)
        hide_unselected(p, p.selected + sample_row * p.selected_stride, s, lane_query, lane_key);
    }

    float correction[m_tiles][2];
    bool changed = false;
#pragma unroll
    for (int m = 0; m < m_tiles; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // row lane / 4 + 8 h
        const float old_max = row_max[m][h];
        float new_max = old_max;
#pragma unroll
        for (int n = 0; n < key_tiles; ++n)
          new_max = fmaxf(new_max, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
        new_max = fmaxf(new_max, __shfl_xor_sync(all_lanes, new_max, 1));
        new_max = fmaxf(new_max, __shfl_xor_sync(all_lanes, new_max, 2));
        row_max[m][h] = new_max;
        changed = changed || new_max != old_max;
        correction[m][h] =
            new_max != old_max ? exp2_approx((old_max - new_max) * to_exponent) : 1.0f;
        const float shift = new_max == -INFINITY
                                ? 0.0f
                                : new_max * to_exponent;  // a row may see nothing of this tile
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < key_tiles; ++n)
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) {
            s[m][n][i] = exp2_approx(fmaf(s[m][n][i], to_exponent, -shift));
            sum += s[m][n][i];
          }
        row_sum[m][h] = row_sum[m][h] * correction[m][h] + sum;
      }
    if (__any_sync(all_lanes, changed)) {
#pragma unroll
      for (int m = 0; m < m_tiles; ++m)
#pragma unroll
        for (int n = 0; n < dv_tiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) o[m][n][i] *= correction[m][i / 2];
    }

#pragma unroll
    for (int step = 0; step < keys / 16; ++step) {
      unsigned a[m_tiles][4];  // two n-tiles of S side by side are one k-tile of P
#pragma unroll
      for (int m = 0; m < m_tiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[m][i] = pack(s[m][2 * step + i / 2][i % 2 * 2], s[m][2 * step + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < dv_tiles; n += 2) {
        unsigned b[4];
        load_transposed(b, v_lane + (step * 16 * pitch<dv> + n * 8) * 2);
#pragma unroll
        for (int m = 0; m < m_tiles; ++m) {
          multiply_add(o[m][n], a[m], b[0], b[1]);
          multiply_add(o[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // The output, through this warp's own rows of the Q tile, so that the stores to memory are 16
  // bytes wide.
  __syncwarp();
#pragma unroll
  for (int m = 0; m < m_tiles; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = row_sum[m][h];
      sum += __shfl_xor_sync(all_lanes, sum, 1);
      sum += __shfl_xor_sync(all_lanes, sum, 2);
      // Beyond the range of exp2 the sum is infinite: the output is 0 then, but for 2^−127.
      if (p.sinks != nullptr)
        sum += exp2_approx(fmaf(p.sinks[head], log2_e, -row_max[m][h] * to_exponent));
      const float inverse = p.value_scale / sum;
      const int row = warp_row + 16 * m + 8 * h + lane / 4;
#pragma unroll
      for (int n = 0; n < dv_tiles; ++n)
        *reinterpret_cast<unsigned*>(q_tile + row * pitch<d> + 8 * n + lane % 4 * 2) =
            pack(o[m][n][2 * h] * inverse, o[m][n][2 * h + 1] * inverse);
    }
  __syncwarp();
  __nv_bfloat16* const out =
      p.out + (sample_row + first_query) * p.out_stride + std::int64_t{head} * p.v_dim + v_first;
  const int valid_rows = min(warp_rows, p.seqlen - first_query);
  const int chunks = v_columns / 8;
  for (int index = lane; index < valid_rows * chunks; index += warp) {
    const int row = index / chunks;
    const int column = index % chunks * 8;
    *reinterpret_cast<uint4*>(out + row * p.out_stride + column) =
        *reinterpret_cast<const uint4*>(q_tile + (warp_row + row) * pitch<d> + column);
  }
}

template <int d, int dv = d>
void launch(const AttentionArguments& arguments, Stream& stream) {
  const std::int64_t query_blocks = (arguments.seqlen + query_rows<d> - 1) / query_rows<d>;
  const std::int64_t blocks = query_blocks * arguments.samples * arguments.columns.heads;
  require(blocks <= INT32_MAX, "attention: more blocks than one launch can hold");
  const auto splits = static_cast<unsigned>((arguments.v_dim + dv - 1) / dv);
  // Without a change of the scores, the scale is applied in the exponent; the row maximum then
  // needs a positive one.
  const bool modified = arguments.soft_cap > 0.0f || arguments.key_bias != nullptr ||
                        arguments.chunk > 0 || !(arguments.scale > 0.0f);
  const auto kernel = arguments.selected != nullptr ? &attention_kernel<d, dv, Scores::selective>
                      : modified                    ? &attention_kernel<d, dv, Scores::modified>
                                                    : &attention_kernel<d, dv, Scores::plain>;
  constexpr int bytes = shared_bytes<d, dv>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<dim3(static_cast<unsigned>(blocks), splits), attention_threads, bytes,
           stream.cuda().stream>>>(arguments);
  check_launch();
}

bool columns_aligned(const HeadLayout& layout) {
  return layout.head_dim % 8 == 0 && layout.value_dim() % 8 == 0 &&
         layout.q_group_stride % 8 == 0 && layout.kv_stride % 8 == 0 && layout.k_begin % 8 == 0 &&
         layout.v_begin % 8 == 0;
}

}  // namespace

void rope(Tensor qkv, const HeadLayout& layout, Matrix<const float> inverse_frequencies,
          float amplitude, bool interleaved, std::int64_t seqlen, Stream& stream) {
  require(qkv.rows <= INT32_MAX && layout.width() <= INT32_MAX,
          "rope: the matrix is larger than one launch can hold");
  const auto half = static_cast<int>(inverse_frequencies.cols);
  if (qkv.rows == 0 || half == 0) return;
  auto* data = static_cast<__nv_bfloat16*>(qkv.data);
  const auto grid = static_cast<unsigned>(qkv.rows);
  const auto head_dim = static_cast<int>(layout.head_dim);
  const std::size_t table_bytes = 2 * static_cast<std::size_t>(half) * sizeof(float);
  const bool vectors = aligned16(qkv.data) && qkv.stride % 8 == 0 && columns_aligned(layout) &&
                       (interleaved ? 2 * half : half) % 8 == 0;
  const auto kernel = interleaved ? (vectors ? &rope_kernel<8, true> : &rope_kernel<2, true>)
                                  : (vectors ? &rope_kernel<8, false> : &rope_kernel<1, false>);
  kernel<<<grid, rope_threads, table_bytes, stream.cuda().stream>>>(
      data, qkv.stride, columns_of(layout), head_dim, inverse_frequencies.data, half, amplitude,
      seqlen);
  check_launch();
}

void attention(ConstTensor qkv, const HeadLayout& layout, std::int64_t seqlen,
               const AttentionOptions& options, Tensor out, Stream& stream) {
  require(
      columns_aligned(layout) && qkv.stride % 8 == 0 && out.stride % 8 == 0 &&
          aligned16(qkv.data) && aligned16(out.data),
      "attention: on CUDA head_dim, v_dim, the columns of the heads and the row strides must be "
      "multiples of 8 elements");
  if (qkv.rows == 0) return;
  require(qkv.rows * layout.heads <= INT32_MAX, "attention: rows times heads exceed one launch");

  AttentionArguments arguments{};
  arguments.qkv = static_cast<const __nv_bfloat16*>(qkv.data);
  arguments.stride = qkv.stride;
  arguments.out = static_cast<__nv_bfloat16*>(out.data);
  arguments.out_stride = out.stride;
  arguments.key_bias = options.key_bias.data;
  arguments.key_bias_stride = options.key_bias.stride;
  arguments.sinks = options.sinks.data;
  arguments.selected = options.selected.data;
  arguments.selected_stride = options.selected.stride;
  arguments.columns = columns_of(layout);
  arguments.samples = static_cast<int>(qkv.rows / seqlen);
  arguments.seqlen = static_cast<int>(seqlen);
  arguments.head_dim = static_cast<int>(layout.head_dim);
  arguments.v_dim = static_cast<int>(layout.value_dim());
  arguments.window =
      static_cast<int>(options.window > 0 ? std::min(options.window, seqlen) : seqlen);
  arguments.chunk = options.chunk < seqlen ? static_cast<int>(options.chunk) : 0;
  arguments.scale = options.scale;
  arguments.soft_cap = options.soft_cap;
  arguments.value_scale = options.value_scale;
  const int widest = std::max(arguments.head_dim, arguments.v_dim);
  if (widest <= 32) return launch<32>(arguments, stream);
  if (widest <= 64) return launch<64>(arguments, stream);
  if (widest <= 96) return launch<96>(arguments, stream);
  if (widest <= 128) return launch<128>(arguments, stream);
  if (widest <= 192 && arguments.v_dim <= 128) return launch<192, 128>(arguments, stream);  // MLA
  if (widest <= 192) return launch<192>(arguments, stream);
  if (widest <= 256) return launch<256>(arguments, stream);
  return launch<512, 256>(arguments, stream);
}

}  // namespace qpipe::cuda
