// The chunked form of the delta rule. In a chunk of 64 tokens, with G_i = Σ_{j≤i} g_j since its
// start, rows q and k normalised, q scaled, and S the state in front of the chunk:
//   (I + A) U = β (V − (K ∘ e^G) S),    A_ij = β_i Σ_c k_ic k_jc e^(G_ic − G_jc) for j < i, else 0;
//   O = (Q ∘ e^G) S + P U,              P_ij = Σ_c q_ic k_jc e^(G_ic − G_jc) for j ≤ i, else 0;
//   S ← diag(e^(G_63)) S + (K ∘ e^(G_63 − G))ᵀ U.
// No exponent is above 0. prepare_kernel makes all that S has no part in, T = (I + A)⁻¹, P and the
// three scaled matrices, of all chunks at once; scan_kernel walks the chunks of a head with some
// columns of S in registers. A column of S needs no other: blocks divide them.
#include "kernels/cuda_handles.h"
#include "kernels/delta_chunk.h"
#include "kernels/delta_rule.h"
#include "kernels/mma_cuda.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int warp = 32;
constexpr int warps = 4;  // each has 16 rows of a chunk
constexpr int threads = warps * warp;
constexpr int chunk = static_cast<int>(delta_chunk);
constexpr unsigned all_lanes = 0xffffffffu;
static_assert(chunk == 16 * warps);

// Operands lie in the scratch memory in tiles of 16 x 16, each as the registers of a warp hold it
// (the first factor of mma.m16n8k16): eight neighbouring elements for each lane.
constexpr int tile = 256;

struct Rule {
  const __nv_bfloat16 *q, *k, *v;
  std::int64_t q_stride, k_stride, v_stride;
  const float *g, *beta;
  std::int64_t g_stride, beta_stride;
  __nv_bfloat16* out;
  std::int64_t out_stride;
  __nv_bfloat16* scratch;
  std::int64_t first;  // head of a sequence, counted through all of them
  std::int64_t value_heads;
  int sharing;  // heads of v of each head of k
  int seqlen;
  int chunks;
  int key_dim;
  int value_dim;
  float scale;
};

template <int d>
constexpr std::int64_t chunk_elements = delta_chunk_elements(d);

// The matrices of a chunk, behind one another.
template <int d>
struct Chunk {
  __nv_bfloat16* read_keys;   // K ∘ e^G, tiles [64 / 16][d / 16]
  __nv_bfloat16* queries;     // Q ∘ e^G, likewise
  __nv_bfloat16* write_keys;  // (K ∘ e^(G_63 − G))ᵀ, tiles [d / 16][64 / 16]
  __nv_bfloat16* inverse;     // T, tiles [64 / 16][64 / 16], of which those on and below the
  __nv_bfloat16* residue;     //    diagonal count, and T − bf16(T)
  __nv_bfloat16* scores;      // P
  float* decay;               // e^(G_63) of each channel

  __device__ Chunk(const Rule& rule, std::int64_t head, int index) {
    read_keys = rule.scratch + ((head - rule.first) * rule.chunks + index) * chunk_elements<d>;
    queries = read_keys + chunk * d;
    write_keys = queries + chunk * d;
    inverse = write_keys + chunk * d;
    residue = inverse + chunk * chunk;
    scores = residue + chunk * chunk;
    decay = reinterpret_cast<float*>(scores + chunk * chunk);
  }
};

__device__ void load_matrices(unsigned (&r)[4], const __nv_bfloat16* row) {
  cuda::load_matrices(r, shared_address(row));
}
__device__ void load_transposed(unsigned (&r)[4], const __nv_bfloat16* row) {
  cuda::load_transposed(r, shared_address(row));
}

// What bf16 leaves of x, for a second product.
__device__ float rest(float x) { return x - __bfloat162float(__float2bfloat16_rn(x)); }

__device__ void store_tile(__nv_bfloat16* tiles, int index, const unsigned (&r)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  *reinterpret_cast<uint4*>(tiles + index * tile + lane * 8) = make_uint4(r[0], r[1], r[2], r[3]);
}

__device__ void load_tile(unsigned (&r)[4], const __nv_bfloat16* tiles, int index) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const uint4 all = *reinterpret_cast<const uint4*>(tiles + index * tile + lane * 8);
  r[0] = all.x;
  r[1] = all.y;
  r[2] = all.z;
  r[3] = all.w;
}

// Registers of the first factor: value(row, column) of 16 x 16.
template <class Value>
__device__ void fill_tile(unsigned (&r)[4], Value value) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int row = lane / 4 + (e & 1) * 8;
    const int column = lane % 4 * 2 + (e >> 1) * 8;
    r[e] = pack(value(row, column), value(row, column + 1));
  }
}

// ---- what no state is needed for

template <int d, bool channel_decay>
struct Prepared {
  static constexpr int pitch = d + 8;  // eight rows of an ldmatrix fall into different banks
  static constexpr int square = chunk + 4;
  __nv_bfloat16 q[chunk * pitch];
  __nv_bfloat16 k[chunk * pitch];
  float g[channel_decay ? chunk * (d + 1) : chunk];  // G
  float a[chunk * square];                           // A, then T
  float p[chunk * square];
  float beta[chunk];
  float q_factor[chunk];  // scale / |q|
  float k_factor[chunk];  // 1 / |k|

  __device__ float sum(int row, int channel) const {
    if constexpr (channel_decay) return g[row * (d + 1) + channel];
    return g[row];
  }
  __device__ float key(int row, int channel) const {
    return __bfloat162float(k[row * pitch + channel]) * k_factor[row];
  }
  __device__ float query(int row, int channel) const {
    return __bfloat162float(q[row * pitch + channel]) * q_factor[row];
  }
};

// Rows beyond the sequence's end and channels beyond the head's are zeros.
template <int d, bool channel_decay>
__device__ void read_chunk(const Rule& rule, std::int64_t row0, int rows, std::int64_t head,
                           Prepared<d, channel_decay>& s) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % warp;
  const std::int64_t column = head / rule.sharing * rule.key_dim;
  for (int i = thread; i < chunk * d / 8; i += threads) {
    const int row = i / (d / 8);
    const int c = i % (d / 8) * 8;
    uint4 q{};
    uint4 k{};
    if (row < rows && c < rule.key_dim) {
      q = *reinterpret_cast<const uint4*>(rule.q + (row0 + row) * rule.q_stride + column + c);
      k = *reinterpret_cast<const uint4*>(rule.k + (row0 + row) * rule.k_stride + column + c);
    }
    *reinterpret_cast<uint4*>(s.q + row * s.pitch + c) = q;
    *reinterpret_cast<uint4*>(s.k + row * s.pitch + c) = k;
  }
  if (thread < chunk)
    s.beta[thread] = thread < rows ? rule.beta[(row0 + thread) * rule.beta_stride + head] : 0.0f;
  if constexpr (channel_decay) {
    for (int c = thread; c < d; c += threads) {
      float sum = 0.0f;
      for (int row = 0; row < chunk; ++row) {
        if (row < rows && c < rule.key_dim)
          sum += rule.g[(row0 + row) * rule.g_stride + head * rule.key_dim + c];
        s.g[row * (d + 1) + c] = sum;
      }
    }
  } else if (thread < warp) {  // two rows a lane
    const auto decay = [&](int row) {
      return row < rows ? rule.g[(row0 + row) * rule.g_stride + head] : 0.0f;
    };
    const float first = decay(2 * lane);
    const float second = decay(2 * lane + 1);
    float sum = first + second;
    for (int step = 1; step < warp; step *= 2) {
      const float before = __shfl_up_sync(all_lanes, sum, step);
      if (lane >= step) sum += before;
    }
    s.g[2 * lane] = sum - second;
    s.g[2 * lane + 1] = sum;
  }
  __syncthreads();
  for (int row = thread / warp; row < chunk; row += warps) {
    float q = 0.0f;
    float k = 0.0f;
    for (int c = lane; c < d; c += warp) {
      const float of_q = __bfloat162float(s.q[row * s.pitch + c]);
      const float of_k = __bfloat162float(s.k[row * s.pitch + c]);
      q += of_q * of_q;
      k += of_k * of_k;
    }
    for (int step = warp / 2; step > 0; step /= 2) {
      q += __shfl_xor_sync(all_lanes, q, step);
      k += __shfl_xor_sync(all_lanes, k, step);
    }
    if (lane == 0) {
      s.q_factor[row] = rule.scale / sqrtf(q + 1e-6f);
      s.k_factor[row] = 1.0f / sqrtf(k + 1e-6f);
    }
  }
  __syncthreads();
}

// K ∘ e^G, Q ∘ e^G, (K ∘ e^(G_63 − G))ᵀ and e^(G_63).
template <int d, bool channel_decay>
__device__ void write_scaled(const Prepared<d, channel_decay>& s, const Chunk<d>& to) {
  const int w = static_cast<int>(threadIdx.x) / warp;
  for (int index = w; index < chunk / 16 * (d / 16); index += warps) {
    const int row = index / (d / 16) * 16;
    const int column = index % (d / 16) * 16;
    unsigned k[4];
    unsigned q[4];
    fill_tile(k, [&](int r, int c) {
      return s.key(row + r, column + c) * expf(s.sum(row + r, column + c));
    });
    fill_tile(q, [&](int r, int c) {
      return s.query(row + r, column + c) * expf(s.sum(row + r, column + c));
    });
    store_tile(to.read_keys, index, k);
    store_tile(to.queries, index, q);
    fill_tile(k, [&](int c, int r) {
      return s.key(row + r, column + c) *
             expf(s.sum(chunk - 1, column + c) - s.sum(row + r, column + c));
    });
    store_tile(to.write_keys, column / 16 * (chunk / 16) + row / 16, k);
  }
  for (int c = static_cast<int>(threadIdx.x); c < d; c += threads)
    to.decay[c] = expf(s.sum(chunk - 1, c));
}

// A and P of the warp's 16 rows, where a decay is one of all channels: it stands outside of the
// sums.
template <int d>
__device__ void multiply_keys(Prepared<d, false>& s) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int w = static_cast<int>(threadIdx.x) / warp;
  float a[chunk / 8][4] = {};
  float p[chunk / 8][4] = {};
#pragma unroll
  for (int kk = 0; kk < d; kk += 16) {
    unsigned k[4];
    unsigned q[4];
    const int left = (16 * w + lane % 16) * s.pitch + kk + lane / 16 * 8;
    load_matrices(k, s.k + left);
    load_matrices(q, s.q + left);
#pragma unroll
    for (int j = 0; j < warps; ++j) {
      if (j > w) continue;
      unsigned b[4];
      load_matrices(b, s.k + (16 * j + lane % 8 + lane / 16 * 8) * s.pitch + kk + lane / 8 % 2 * 8);
      multiply_add(a[2 * j], k, b[0], b[1]);
      multiply_add(a[2 * j + 1], k, b[2], b[3]);
      multiply_add(p[2 * j], q, b[0], b[1]);
      multiply_add(p[2 * j + 1], q, b[2], b[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = 16 * w + lane / 4 + e / 2 * 8;
      const int j = 8 * n + lane % 4 * 2 + e % 2;
      const float decay = j <= i ? expf(s.g[i] - s.g[j]) * s.k_factor[j] : 0.0f;
      s.a[i * s.square + j] = j < i ? a[n][e] * decay * s.beta[i] * s.k_factor[i] : 0.0f;
      s.p[i * s.square + j] = j <= i ? p[n][e] * decay * s.q_factor[i] : 0.0f;
    }
}

// The same with a decay for each channel. Left of the warp's 16 columns the sum up to the row in
// front of them, R, divides the exponent into two that are not above 0: G_i − R and R − G_j. In the
// 16 x 16 on the diagonal each pair is summed on its own.
template <int d>
__device__ void multiply_keys(Prepared<d, true>& s) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int w = static_cast<int>(threadIdx.x) / warp;
  const int first = 16 * w;
  float a[chunk / 8][4] = {};
  float p[chunk / 8][4] = {};
  if (w > 0) {
    for (int kk = 0; kk < d; kk += 16) {
      unsigned k[4];
      unsigned q[4];
      const auto since = [&](int row, int c) { return expf(s.sum(row, c) - s.sum(first - 1, c)); };
      fill_tile(k,
                [&](int r, int c) { return s.key(first + r, kk + c) * since(first + r, kk + c); });
      fill_tile(
          q, [&](int r, int c) { return s.query(first + r, kk + c) * since(first + r, kk + c); });
#pragma unroll
      for (int n = 0; n < chunk / 8; ++n) {
        if (n >= 2 * w) continue;
        const int j = 8 * n + lane / 4;
        const auto until = [&](int c) {
          return s.key(j, c) * expf(s.sum(first - 1, c) - s.sum(j, c));
        };
        const int c = kk + lane % 4 * 2;
        const unsigned b0 = pack(until(c), until(c + 1));
        const unsigned b1 = pack(until(c + 8), until(c + 9));
        multiply_add(a[n], k, b0, b1);
        multiply_add(p[n], q, b0, b1);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = first + lane / 4 + e / 2 * 8;
      const int j = 8 * n + lane % 4 * 2 + e % 2;
      s.a[i * s.square + j] = n < 2 * w ? a[n][e] * s.beta[i] : 0.0f;
      s.p[i * s.square + j] = n < 2 * w ? p[n][e] : 0.0f;
    }
  __syncwarp();
  // The pairs on and below the diagonal, as 8 rows of 17: those of row r and of row 15 − r.
  for (int pair = lane; pair < 8 * 17; pair += warp) {
    const int r = pair / 17;
    const int place = pair % 17;
    const int i = first + (place <= r ? r : 15 - r);
    const int j = first + (place <= r ? place : place - r - 1);
    float of_k = 0.0f;
    float of_q = 0.0f;
    for (int c = 0; c < d; ++c) {
      const float other = s.key(j, c) * __expf(s.sum(i, c) - s.sum(j, c));
      of_k = fmaf(s.key(i, c), other, of_k);
      of_q = fmaf(s.query(i, c), other, of_q);
    }
    if (j < i) s.a[i * s.square + j] = of_k * s.beta[i];
    s.p[i * s.square + j] = of_q;
  }
}

// a ← (I + a)⁻¹ of a below the diagonal. A thread has a column t of the inverse, from above:
// t_i = δ_i − Σ_{j<i} a_ij t_j.
template <int square>
__device__ void invert(float* a) {
  const int column = static_cast<int>(threadIdx.x);
  float t[chunk];
  if (column < chunk) {
#pragma unroll
    for (int i = 0; i < chunk; ++i) {
      float sum[4] = {};
#pragma unroll
      for (int j = 0; j < i; ++j) sum[j % 4] = fmaf(a[i * square + j], t[j], sum[j % 4]);
      t[i] = (i == column ? 1.0f : 0.0f) - ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
  }
  __syncthreads();  // all have read a
  if (column < chunk) {
#pragma unroll
    for (int i = 0; i < chunk; ++i) a[i * square + column] = t[i];
  }
  __syncthreads();
}

template <int d, bool channel_decay>
__global__ __launch_bounds__(threads) void prepare_kernel(Rule rule) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& s = *reinterpret_cast<Prepared<d, channel_decay>*>(memory);
  const std::int64_t head = rule.first + blockIdx.x / static_cast<unsigned>(rule.chunks);
  const int index = static_cast<int>(blockIdx.x % static_cast<unsigned>(rule.chunks));
  const std::int64_t row0 = head / rule.value_heads * rule.seqlen + std::int64_t{index} * chunk;
  const int rows = min(chunk, rule.seqlen - index * chunk);
  read_chunk(rule, row0, rows, head % rule.value_heads, s);
  const Chunk<d> to(rule, head, index);
  write_scaled(s, to);
  multiply_keys(s);
  __syncthreads();
  invert<Prepared<d, channel_decay>::square>(s.a);
  const int w = static_cast<int>(threadIdx.x) / warp;
  for (int j = 0; j <= w; ++j) {
    const auto at = [&](int r, int c) { return (16 * w + r) * s.square + 16 * j + c; };
    unsigned values[4];
    fill_tile(values, [&](int r, int c) { return s.a[at(r, c)]; });
    store_tile(to.inverse, w * warps + j, values);
    fill_tile(values, [&](int r, int c) { return rest(s.a[at(r, c)]); });
    store_tile(to.residue, w * warps + j, values);
    fill_tile(values, [&](int r, int c) { return s.p[at(r, c)]; });
    store_tile(to.scores, w * warps + j, values);
  }
}

// ---- along the sequence

constexpr int columns = 32;         // of S and V that a block has
constexpr int column_tiles = 4;     // of mma
constexpr int pitch = columns + 8;  // eight rows of an ldmatrix fall into different banks

// A matrix [rows, columns] as two of bf16 whose sum it is: the second factor of products.
template <int rows>
struct Split {
  __nv_bfloat16 high[rows * pitch];
  __nv_bfloat16 low[rows * pitch];

  // Rows row0 + 0 … 15 from the registers of a product.
  __device__ void store(int row0, const float (&c)[column_tiles][4]) {
    const int lane = static_cast<int>(threadIdx.x) % warp;
#pragma unroll
    for (int n = 0; n < column_tiles; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = (row0 + lane / 4 + 8 * half) * pitch + 8 * n + lane % 4 * 2;
        const float first = c[n][2 * half];
        const float second = c[n][2 * half + 1];
        *reinterpret_cast<unsigned*>(high + at) = pack(first, second);
        *reinterpret_cast<unsigned*>(low + at) = pack(rest(first), rest(second));
      }
  }
};

// c += a (high + low), the factor's rows row0 + 0 … 15.
template <int rows>
__device__ void multiply_split(float (&c)[column_tiles][4], const unsigned (&a)[4],
                               const Split<rows>& b, int row0) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
#pragma unroll
  for (int n = 0; n < column_tiles; n += 2) {
    const int at = (row0 + lane % 16) * pitch + 8 * n + lane / 16 * 8;
    unsigned r[4];
    load_transposed(r, b.low + at);
    multiply_add(c[n], a, r[0], r[1]);
    multiply_add(c[n + 1], a, r[2], r[3]);
    load_transposed(r, b.high + at);
    multiply_add(c[n], a, r[0], r[1]);
    multiply_add(c[n + 1], a, r[2], r[3]);
  }
}
// c += a high
template <int rows>
__device__ void multiply_high(float (&c)[column_tiles][4], const unsigned (&a)[4],
                              const Split<rows>& b, int row0) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
#pragma unroll
  for (int n = 0; n < column_tiles; n += 2) {
    unsigned r[4];
    load_transposed(r, b.high + (row0 + lane % 16) * pitch + 8 * n + lane / 16 * 8);
    multiply_add(c[n], a, r[0], r[1]);
    multiply_add(c[n + 1], a, r[2], r[3]);
  }
}

template <int d>
struct Scanned {
  Split<d> state;
  Split<chunk> wanted;  // β (V − (K ∘ e^G) S)
  Split<chunk> update;  // U
};

// Warp w has rows 16 w … of a chunk and rows d / 4 · w … of the state.
template <int d>
__global__ __launch_bounds__(threads) void scan_kernel(Rule rule) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& s = *reinterpret_cast<Scanned<d>*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int w = static_cast<int>(threadIdx.x) / warp;
  const std::int64_t head = rule.first + blockIdx.x;
  const std::int64_t h = head % rule.value_heads;
  const std::int64_t row0 = head / rule.value_heads * rule.seqlen;
  const int column0 = static_cast<int>(blockIdx.y) * columns;
  constexpr int state_tiles = d / 16 / warps;
  float state[state_tiles][column_tiles][4] = {};
  for (int index = 0; index < rule.chunks; ++index) {
    const Chunk<d> from(rule, head, index);
#pragma unroll
    for (int m = 0; m < state_tiles; ++m) s.state.store((w * state_tiles + m) * 16, state[m]);
    __syncthreads();
    float known[column_tiles][4] = {};  // (K ∘ e^G) S
    float out[column_tiles][4] = {};
#pragma unroll
    for (int c = 0; c < d / 16; ++c) {
      unsigned a[4];
      load_tile(a, from.read_keys, w * (d / 16) + c);
      multiply_split(known, a, s.state, 16 * c);
      load_tile(a, from.queries, w * (d / 16) + c);
      multiply_split(out, a, s.state, 16 * c);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = index * chunk + 16 * w + lane / 4 + 8 * half;
      const bool inside = row < rule.seqlen;
      const float beta = inside ? rule.beta[(row0 + row) * rule.beta_stride + h] : 0.0f;
#pragma unroll
      for (int n = 0; n < column_tiles; ++n) {
        const int column = column0 + 8 * n + lane % 4 * 2;
        float v[2] = {};
        if (inside && column < rule.value_dim) {
          const auto both = *reinterpret_cast<const __nv_bfloat162*>(
              rule.v + (row0 + row) * rule.v_stride + h * rule.value_dim + column);
          v[0] = __low2float(both);
          v[1] = __high2float(both);
        }
        known[n][2 * half] = beta * (v[0] - known[n][2 * half]);
        known[n][2 * half + 1] = beta * (v[1] - known[n][2 * half + 1]);
      }
    }
    s.wanted.store(16 * w, known);
    __syncthreads();
    float update[column_tiles][4] = {};  // T β (V − (K ∘ e^G) S)
    for (int j = 0; j <= w; ++j) {
      unsigned a[4];
      load_tile(a, from.residue, w * warps + j);
      multiply_high(update, a, s.wanted, 16 * j);
      load_tile(a, from.inverse, w * warps + j);
      multiply_split(update, a, s.wanted, 16 * j);
    }
    s.update.store(16 * w, update);
    __syncthreads();
    for (int j = 0; j <= w; ++j) {
      unsigned a[4];
      load_tile(a, from.scores, w * warps + j);
      multiply_split(out, a, s.update, 16 * j);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = index * chunk + 16 * w + lane / 4 + 8 * half;
      if (row >= rule.seqlen) continue;
#pragma unroll
      for (int n = 0; n < column_tiles; ++n) {
        const int column = column0 + 8 * n + lane % 4 * 2;
        if (column < rule.value_dim)
          *reinterpret_cast<unsigned*>(rule.out + (row0 + row) * rule.out_stride +
                                       h * rule.value_dim + column) =
              pack(out[n][2 * half], out[n][2 * half + 1]);
      }
    }
    if (index + 1 == rule.chunks) break;
#pragma unroll
    for (int m = 0; m < state_tiles; ++m) {
      const int row = (w * state_tiles + m) * 16 + lane / 4;
#pragma unroll
      for (int n = 0; n < column_tiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) state[m][n][e] *= from.decay[row + e / 2 * 8];
#pragma unroll
      for (int j = 0; j < warps; ++j) {
        unsigned a[4];
        load_tile(a, from.write_keys, (w * state_tiles + m) * warps + j);
        multiply_split(state[m], a, s.update, 16 * j);
      }
    }
  }
}

template <int d, bool channel_decay>
void launch_prepare(const Rule& rule, std::int64_t heads, Stream& stream) {
  constexpr int bytes = sizeof(Prepared<d, channel_decay>);
  const auto kernel = &prepare_kernel<d, channel_decay>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<static_cast<unsigned>(heads * rule.chunks), threads, bytes, stream.cuda().stream>>>(
      rule);
  check_launch();
}

template <int d>
void launch(const Rule& rule, bool channel_decay, std::int64_t heads, Stream& stream) {
  if (channel_decay)
    launch_prepare<d, true>(rule, heads, stream);
  else
    launch_prepare<d, false>(rule, heads, stream);
  constexpr int bytes = sizeof(Scanned<d>);
  const auto kernel = &scan_kernel<d>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const dim3 grid(static_cast<unsigned>(heads),
                  static_cast<unsigned>((rule.value_dim + columns - 1) / columns));
  kernel<<<grid, threads, bytes, stream.cuda().stream>>>(rule);
  check_launch();
}

bool in_vectors(ConstTensor x) { return x.size() == 0 || vectorizable(x); }

// The part of the memory that begins at a multiple of 16 bytes.
Tensor aligned(Tensor memory) {
  if (memory.empty()) return {};
  const auto offset = reinterpret_cast<std::uintptr_t>(memory.data) % 16;
  const auto skipped = static_cast<std::int64_t>(offset == 0 ? 0 : (16 - offset) / 2);
  return memory.part(skipped, 1, std::max<std::int64_t>(0, memory.size() - skipped));
}

}  // namespace

void delta_rule(ConstTensor q, ConstTensor k, ConstTensor v, Matrix<const float> g,
                Matrix<const float> beta, const DeltaHeads& heads, std::int64_t seqlen, Tensor out,
                Tensor scratch, Stream& stream) {
  require(heads.key_dim <= 256 && heads.key_dim % 8 == 0 && heads.value_dim % 8 == 0,
          "delta_rule: heads of keys and values must be multiples of 8 wide, keys 256 at most");
  require(in_vectors(q) && in_vectors(k) && in_vectors(v) && in_vectors(out),
          "delta_rule: rows of q, k, v and out must begin at multiples of 16 bytes");
  require(scratch.empty() ||
              (scratch.dtype == DType::bf16 && (scratch.rows <= 1 || scratch.contiguous())),
          "delta_rule: scratch must be memory of the compute type");
  if (out.size() == 0) return;
  const std::int64_t d = padded_key_dim(heads.key_dim);
  Rule rule{};
  rule.q = static_cast<const __nv_bfloat16*>(q.data);
  rule.k = static_cast<const __nv_bfloat16*>(k.data);
  rule.v = static_cast<const __nv_bfloat16*>(v.data);
  rule.q_stride = q.stride;
  rule.k_stride = k.stride;
  rule.v_stride = v.stride;
  rule.g = g.data;
  rule.beta = beta.data;
  rule.g_stride = g.stride;
  rule.beta_stride = beta.stride;
  rule.out = static_cast<__nv_bfloat16*>(out.data);
  rule.out_stride = out.stride;
  rule.value_heads = heads.value_heads;
  rule.sharing = static_cast<int>(heads.value_heads / heads.key_heads);
  rule.seqlen = static_cast<int>(seqlen);
  rule.chunks = static_cast<int>((seqlen + chunk - 1) / chunk);
  rule.key_dim = static_cast<int>(heads.key_dim);
  rule.value_dim = static_cast<int>(heads.value_dim);
  rule.scale = 1.0f / std::sqrt(static_cast<float>(heads.key_dim));

  const std::int64_t of_head = rule.chunks * delta_chunk_elements(d);
  TensorArray own;
  Tensor memory = aligned(scratch);
  if (memory.size() < of_head) {
    own = TensorArray(DType::bf16, 1, of_head, stream);
    memory = own.view;
  }
  rule.scratch = static_cast<__nv_bfloat16*>(memory.data);
  const std::int64_t all = v.rows / seqlen * heads.value_heads;
  const std::int64_t at_once =
      std::min({all, memory.size() / of_head, std::int64_t{INT32_MAX} / rule.chunks});
  for (rule.first = 0; rule.first < all; rule.first += at_once) {
    const std::int64_t count = std::min(at_once, all - rule.first);
    if (d == 64)
      launch<64>(rule, heads.channel_decay, count, stream);
    else if (d == 128)
      launch<128>(rule, heads.channel_decay, count, stream);
    else
      launch<256>(rule, heads.channel_decay, count, stream);
  }
}

}  // namespace qpipe::cuda
