#include <cmath>

#include "kernels/cuda_handles.h"
#include "kernels/mma_cuda.h"
#include "kernels/softplus_cuda.h"
#include "kernels/state_space.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

// A block computes up to 64 columns of one head of one sequence and walks over its chunks of q
// tokens. With a_t = Σ Δ A from the chunk's beginning to t, and S the state in front of it:
//   y_t = exp(a_t) S C_t + Σ_{s ≤ t} (C_t · B_s) exp(a_t − a_s) Δ_s x_s + D x_t
//   S ← exp(a_q) S + Σ_s exp(a_q − a_s) Δ_s x_s B_sᵀ
// B, C, x and S, rounded to bfloat16, lie in shared memory, rows padded by 16 bytes so that the
// eight rows of an ldmatrix fall into different banks; S itself stays in registers, as fragments of
// mma.m16n8k16: a warp owns 16 of its rows and up to 128 of its columns. Tokens that are not there
// have x = B = C = 0 and Δ = 0, and so have columns.

constexpr int warp = 32;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr float log2_e = 1.44269504f;
constexpr int value_columns = 64;  // of y, of a block
constexpr int padding = 8;         // elements behind each row in shared memory

struct Arguments {
  const __nv_bfloat16* xbc;
  std::int64_t xbc_stride;
  const __nv_bfloat16* dt;
  std::int64_t dt_stride;
  const float* a_log;
  const float* dt_bias;
  const float* d;
  __nv_bfloat16* y;
  std::int64_t y_stride;
  int heads;
  int heads_of_group;
  int head_dim;
  int state;
  std::int64_t b_begin;
  std::int64_t c_begin;
  int seqlen;
  float shortest;
  float longest;
  bool in_vectors;  // x, B and C can be read 16 bytes at a time
};

template <int n>
constexpr int warps = n > 128 ? 8 : 4;
template <int n>
constexpr int chunk_tokens = n > 128 ? 32 : 64;  // what 99 KiB of shared memory hold
template <int n>
constexpr int shared_bytes = (2 * chunk_tokens<n> * (n + padding) +
                              chunk_tokens<n> * (value_columns + padding) +
                              value_columns * (n + padding)) *
                             2;

// rows x width elements → shared memory; what is beyond valid_rows or valid_columns becomes zero,
// and nothing is read for it.
template <int rows, int width, int threads>
__device__ void copy_tile(__nv_bfloat16* to, const __nv_bfloat16* from, std::int64_t stride,
                          int valid_rows, int valid_columns, bool in_vectors) {
  constexpr int pitch = width + padding;
  constexpr int vectors = width / vector_elements;  // of a row
  static_assert(rows * vectors % threads == 0);
  if (in_vectors) {
#pragma unroll
    for (int i = static_cast<int>(threadIdx.x); i < rows * vectors; i += threads) {
      const int row = i / vectors;
      const int column = i % vectors * vector_elements;
      const bool valid = row < valid_rows && column < valid_columns;
      copy_or_zero(shared_address(to + row * pitch + column),
                   valid ? from + row * stride + column : from, valid);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < rows * width; i += threads) {
    const int row = i / width;
    const int column = i % width;
    to[row * pitch + column] = row < valid_rows && column < valid_columns
                                   ? from[row * stride + column]
                                   : __float2bfloat16_rn(0.0f);
  }
}

// One warp: Δ of the chunk's tokens and a_t, as exponents of 2.
template <int q>
__device__ void time_steps(const Arguments& p, const __nv_bfloat16* dt, int valid, float a,
                           float dt_bias, float* step_of, float* exponent_of) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  float before = 0.0f;
#pragma unroll
  for (int first = 0; first < q; first += warp) {
    const int t = first + lane;
    float step = 0.0f;
    if (t < valid)
      step = fminf(fmaxf(softplus(widen(dt[t * p.dt_stride]) + dt_bias), p.shortest), p.longest);
    float sum = step * a;
#pragma unroll
    for (int distance = 1; distance < warp; distance *= 2) {
      const float other = __shfl_up_sync(all_lanes, sum, distance);
      if (lane >= distance) sum += other;
    }
    sum += before;
    before = __shfl_sync(all_lanes, sum, warp - 1);
    step_of[t] = step;
    exponent_of[t] = sum;
  }
}

// n: the state, with zeros up to a multiple of 64.
template <int n>
__global__ __launch_bounds__(warps<n>* warp) void state_space_kernel(Arguments p) {
  constexpr int q = chunk_tokens<n>;
  constexpr int threads = warps<n> * warp;
  constexpr int row_groups = q / 16;  // warps that share the rows of y …
  constexpr int y_columns = value_columns * row_groups / warps<n>;  // … and the columns of each
  constexpr int y_tiles = y_columns / 8;
  constexpr int s_columns = n / (warps<n> / 4);  // of the state of a warp
  constexpr int s_tiles = s_columns / 8;
  constexpr int pitch = n + padding;
  constexpr int x_pitch = value_columns + padding;
  extern __shared__ __align__(16) unsigned char memory[];
  auto* const b_tile = reinterpret_cast<__nv_bfloat16*>(memory);  // [q, n]
  auto* const c_tile = b_tile + q * pitch;                        // [q, n]
  auto* const x_tile = c_tile + q * pitch;                        // [q, value_columns]
  auto* const s_tile = x_tile + q * x_pitch;                      // [value_columns, n]
  __shared__ float step_of[q];
  __shared__ float exponent_of[q];

  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const std::int64_t first_row = std::int64_t{blockIdx.x} / p.heads * p.seqlen;
  const int first_value = static_cast<int>(blockIdx.y) * value_columns;
  const int values = min(value_columns, p.head_dim - first_value);
  const __nv_bfloat16* const sequence = p.xbc + first_row * p.xbc_stride;
  const std::int64_t group_column = std::int64_t{head / p.heads_of_group} * p.state;
  const std::int64_t x_column = std::int64_t{head} * p.head_dim + first_value;
  // Finite, so that a_t − a_s is a number.
  const float a = fmaxf(-expf(p.a_log[head]) * log2_e, -1e30f);
  const float dt_bias = p.dt_bias[head];
  const float d = p.d[head];

  const int lane = static_cast<int>(threadIdx.x) % warp;
  const int w = static_cast<int>(threadIdx.x) / warp;
  const int y_row = w % row_groups * 16;  // in the chunk
  const int y_column = w / row_groups * y_columns;
  const int s_row = w % 4 * 16;
  const int s_column = w / 4 * s_columns;
  // Lane addresses of ldmatrix: row = lane % 16 and 8 columns = lane / 16; or 8 rows = lane / 16
  // and 8 columns = lane / 8 % 2.
  const int by_row = lane % 16;
  const int by_row_column = lane / 16 * 8;
  const int by_column = lane / 16 * 8 + lane % 8;
  const int by_column_column = lane / 8 % 2 * 8;
  const unsigned c_lane = shared_address(c_tile + (y_row + by_row) * pitch + by_row_column);
  const unsigned b_lane = shared_address(b_tile + by_column * pitch + by_column_column);
  const unsigned s_lane =
      shared_address(s_tile + (y_column + by_column) * pitch + by_column_column);
  const unsigned x_lane = shared_address(x_tile + by_row * x_pitch + y_column + by_row_column);
  const unsigned xt_lane = shared_address(x_tile + by_column * x_pitch + s_row + by_column_column);
  const unsigned bt_lane = shared_address(b_tile + by_row * pitch + s_column + by_row_column);

  float s[s_tiles][4] = {};
  for (int begin = 0; begin < p.seqlen; begin += q) {
    const int valid = min(q, p.seqlen - begin);
    const __nv_bfloat16* const rows = sequence + begin * p.xbc_stride;
    copy_tile<q, n, threads>(b_tile, rows + p.b_begin + group_column, p.xbc_stride, valid, p.state,
                             p.in_vectors);
    copy_tile<q, n, threads>(c_tile, rows + p.c_begin + group_column, p.xbc_stride, valid, p.state,
                             p.in_vectors);
    copy_tile<q, value_columns, threads>(x_tile, rows + x_column, p.xbc_stride, valid, values,
                                         p.in_vectors);
    if (w == 0)
      time_steps<q>(p, p.dt + (first_row + begin) * p.dt_stride + head, valid, a, dt_bias, step_of,
                    exponent_of);
      // Element i of s[j] is row s_row + lane / 4 + i / 2 · 8, column s_column + 8 j + lane % 4 · 2
      // + i % 2.
#pragma unroll
    for (int j = 0; j < s_tiles; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        *reinterpret_cast<unsigned*>(s_tile + (s_row + lane / 4 + 8 * h) * pitch + s_column +
                                     8 * j + lane % 4 * 2) = pack(s[j][2 * h], s[j][2 * h + 1]);
    wait_for_copies();
    __syncthreads();

    // y = C Sᵀ and scores = C Bᵀ, the latter up to this warp's own tokens.
    float y[y_tiles][4] = {};
    float scores[q / 8][4] = {};
#pragma unroll
    for (int k = 0; k < n; k += 16) {
      unsigned c[4];
      load_matrices(c, c_lane + k * 2);
#pragma unroll
      for (int j = 0; j < y_tiles; j += 2) {
        unsigned b[4];
        load_matrices(b, s_lane + (j * 8 * pitch + k) * 2);
        multiply_add(y[j], c, b[0], b[1]);
        multiply_add(y[j + 1], c, b[2], b[3]);
      }
#pragma unroll
      for (int j = 0; j < q / 8; j += 2)
        if (8 * j <= y_row) {
          unsigned b[4];
          load_matrices(b, b_lane + (j * 8 * pitch + k) * 2);
          multiply_add(scores[j], c, b[0], b[1]);
          multiply_add(scores[j + 1], c, b[2], b[3]);
        }
    }

    const int lane_row = y_row + lane / 4;  // and 8 rows below
    const float exponent[2] = {exponent_of[lane_row], exponent_of[lane_row + 8]};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float decay = exp2_approx(exponent[h]);
#pragma unroll
      for (int j = 0; j < y_tiles; ++j) {
        y[j][2 * h] *= decay;
        y[j][2 * h + 1] *= decay;
      }
    }
#pragma unroll
    for (int j = 0; j < q / 8; j += 2)
      if (8 * j <= y_row) {
#pragma unroll
        for (int tile = j; tile < j + 2; ++tile)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int from = 8 * tile + lane % 4 * 2 + i % 2;
            const int to = lane_row + i / 2 * 8;
            scores[tile][i] = from <= to ? scores[tile][i] * step_of[from] *
                                               exp2_approx(exponent[i / 2] - exponent_of[from])
                                         : 0.0f;
          }
        const unsigned m[4] = {pack(scores[j][0], scores[j][1]), pack(scores[j][2], scores[j][3]),
                               pack(scores[j + 1][0], scores[j + 1][1]),
                               pack(scores[j + 1][2], scores[j + 1][3])};
#pragma unroll
        for (int v = 0; v < y_tiles; v += 2) {
          unsigned b[4];
          load_transposed(b, x_lane + (j * 8 * x_pitch + v * 8) * 2);
          multiply_add(y[v], m, b[0], b[1]);
          multiply_add(y[v + 1], m, b[2], b[3]);
        }
      }

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane_row + 8 * h;
      if (row >= valid) continue;
      __nv_bfloat16* const out = p.y + (first_row + begin + row) * p.y_stride + x_column;
#pragma unroll
      for (int j = 0; j < y_tiles; ++j) {
        const int column = y_column + 8 * j + lane % 4 * 2;
        const __nv_bfloat16* const x = x_tile + row * x_pitch + column;
        const float low = y[j][2 * h] + d * widen(x[0]);
        const float high = y[j][2 * h + 1] + d * widen(x[1]);
        if (p.in_vectors && column < values) {
          *reinterpret_cast<unsigned*>(out + column) = pack(low, high);
        } else {
          if (column < values) narrow(low, out[column]);
          if (column + 1 < values) narrow(high, out[column + 1]);
        }
      }
    }

    // S ← exp(a_q) S + (decay Δ x)ᵀ B
    const float whole = exponent_of[q - 1];
    const float decay = exp2_approx(whole);
#pragma unroll
    for (int j = 0; j < s_tiles; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] *= decay;
#pragma unroll
    for (int k = 0; k < q; k += 16) {
      unsigned x[4];
      load_transposed(x, xt_lane + k * x_pitch * 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = k + 8 * half + lane % 4 * 2;
        const float low = step_of[t] * exp2_approx(whole - exponent_of[t]);
        const float high = step_of[t + 1] * exp2_approx(whole - exponent_of[t + 1]);
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const float2 both = unpack(x[i]);
          x[i] = pack(both.x * low, both.y * high);
        }
      }
#pragma unroll
      for (int j = 0; j < s_tiles; j += 2) {
        unsigned b[4];
        load_transposed(b, bt_lane + (k * pitch + j * 8) * 2);
        multiply_add(s[j], x, b[0], b[1]);
        multiply_add(s[j + 1], x, b[2], b[3]);
      }
    }
    __syncthreads();  // all are done with the tiles
  }
}

template <int n>
void launch(const Arguments& arguments, std::int64_t sequences, Stream& stream) {
  const dim3 grid(static_cast<unsigned>(sequences * arguments.heads),
                  static_cast<unsigned>((arguments.head_dim + value_columns - 1) / value_columns));
  check(cudaFuncSetAttribute(state_space_kernel<n>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             shared_bytes<n>));
  state_space_kernel<n>
      <<<grid, warps<n> * warp, shared_bytes<n>, stream.cuda().stream>>>(arguments);
  check_launch();
}

bool multiple_of_8(std::int64_t x) { return x % vector_elements == 0; }

}  // namespace

void state_space(ConstTensor xbc, ConstTensor dt, const StateSpaceLayout& layout,
                 const StateSpaceParameters& parameters, std::int64_t seqlen, Tensor y,
                 Stream& stream) {
  if (y.size() == 0) return;
  const std::int64_t sequences = xbc.rows / seqlen;
  require(sequences * layout.heads <= INT32_MAX && seqlen <= INT32_MAX,
          "state_space: more sequences and heads than one launch can hold");
  Arguments arguments{};
  arguments.xbc = static_cast<const __nv_bfloat16*>(xbc.data);
  arguments.xbc_stride = xbc.stride;
  arguments.dt = static_cast<const __nv_bfloat16*>(dt.data);
  arguments.dt_stride = dt.stride;
  arguments.a_log = parameters.a_log.data;
  arguments.dt_bias = parameters.dt_bias.data;
  arguments.d = parameters.d.data;
  arguments.y = static_cast<__nv_bfloat16*>(y.data);
  arguments.y_stride = y.stride;
  arguments.heads = static_cast<int>(layout.heads);
  arguments.heads_of_group = static_cast<int>(layout.heads / layout.groups);
  arguments.head_dim = static_cast<int>(layout.head_dim);
  arguments.state = static_cast<int>(layout.state);
  arguments.b_begin = layout.b_begin();
  arguments.c_begin = layout.c_begin();
  arguments.seqlen = static_cast<int>(seqlen);
  arguments.shortest = parameters.shortest;
  arguments.longest = parameters.longest;
  arguments.in_vectors = aligned16(xbc.data) && aligned16(y.data) && multiple_of_8(xbc.stride) &&
                         multiple_of_8(y.stride) && multiple_of_8(layout.head_dim) &&
                         multiple_of_8(layout.state);
  if (layout.state <= 64) return launch<64>(arguments, sequences, stream);
  if (layout.state <= 128) return launch<128>(arguments, sequences, stream);
  return launch<256>(arguments, sequences, stream);
}

}  // namespace qpipe::cuda
