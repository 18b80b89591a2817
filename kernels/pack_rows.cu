#include "kernels/pack_rows.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int threads = 256;
constexpr int run = 32;  // codes of a thread: `bits` whole words

// Rows of up to 2^31 runs; blockIdx.y strides over the rows.
dim3 run_grid(std::int64_t rows, std::int64_t runs) {
  return {static_cast<unsigned>((runs + threads - 1) / threads),
          static_cast<unsigned>(std::min<std::int64_t>(rows, 65535))};
}

template <int bits>
__device__ void to_words(const std::uint8_t (&code)[run], unsigned (&word)[bits]) {
#pragma unroll
  for (int w = 0; w < bits; ++w) word[w] = 0;
#pragma unroll
  for (int i = 0; i < run; ++i) {
    const unsigned field = code[i] & ((1u << bits) - 1u);
    const int first = i * bits / 32;
    const int shift = i * bits % 32;
    word[first] |= field << shift;
    if (shift + bits > 32) word[first + 1] |= field >> (32 - shift);
  }
}

template <int bits>
__device__ void to_codes(const unsigned (&word)[bits], std::uint8_t (&code)[run]) {
#pragma unroll
  for (int i = 0; i < run; ++i) {
    const int first = i * bits / 32;
    const int shift = i * bits % 32;
    unsigned field = word[first] >> shift;
    if (shift + bits > 32) field |= word[first + 1] << (32 - shift);
    code[i] = static_cast<std::uint8_t>(field & ((1u << bits) - 1u));
  }
}

struct alignas(16) Run {
  std::uint8_t code[run];
};

// The words of a run, in the largest pieces that they fill.
template <int bits>
struct alignas(bits == 3   ? 4
               : bits == 2 ? 8
                           : 16) Words {
  unsigned word[bits];
};

// aligned: rows of code and of words can be accessed in whole runs.
template <int bits, bool aligned>
__global__ void pack_rows_kernel(Matrix<const std::uint8_t> code, Matrix<std::uint32_t> words) {
  const std::int64_t first = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * run;
  if (first >= code.cols) return;
  const std::int64_t word_begin = first / run * bits;
  for (std::int64_t row = blockIdx.y; row < code.rows; row += gridDim.y) {
    const std::uint8_t* from = code.data + row * code.stride + first;
    Run held;
    if (aligned && first + run <= code.cols) {
      held = *reinterpret_cast<const Run*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < run; ++i)
        held.code[i] = first + i < code.cols ? from[i] : std::uint8_t{0};
    }
    Words<bits> packed;
    to_words<bits>(held.code, packed.word);
    std::uint32_t* to = words.data + row * words.stride + word_begin;
    if (aligned && first + run <= code.cols) {
      *reinterpret_cast<Words<bits>*>(to) = packed;
    } else {
#pragma unroll
      for (int w = 0; w < bits; ++w)
        if (word_begin + w < words.cols) to[w] = packed.word[w];
    }
  }
}

template <int bits, bool aligned>
__global__ void unpack_rows_kernel(Matrix<const std::uint32_t> words, Matrix<std::uint8_t> code) {
  const std::int64_t first = (std::int64_t{blockIdx.x} * threads + threadIdx.x) * run;
  if (first >= code.cols) return;
  const std::int64_t word_begin = first / run * bits;
  for (std::int64_t row = blockIdx.y; row < code.rows; row += gridDim.y) {
    const std::uint32_t* from = words.data + row * words.stride + word_begin;
    Words<bits> packed;
    if (aligned && first + run <= code.cols) {
      packed = *reinterpret_cast<const Words<bits>*>(from);
    } else {
#pragma unroll
      for (int w = 0; w < bits; ++w) packed.word[w] = word_begin + w < words.cols ? from[w] : 0u;
    }
    Run held;
    to_codes<bits>(packed.word, held.code);
    std::uint8_t* to = code.data + row * code.stride + first;
    if (aligned && first + run <= code.cols) {
      *reinterpret_cast<Run*>(to) = held;
    } else {
#pragma unroll
      for (int i = 0; i < run; ++i)
        if (first + i < code.cols) to[i] = held.code[i];
    }
  }
}

// A thread has 32 rows of one column; neighbours have neighbouring columns.
template <int bits>
__global__ void pack_columns_kernel(Matrix<const std::uint8_t> zero, Matrix<std::uint32_t> words) {
  const std::int64_t col = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (col >= zero.cols) return;
  for (std::int64_t block = blockIdx.y; block * run < zero.rows; block += gridDim.y) {
    Run held;
#pragma unroll
    for (int i = 0; i < run; ++i)
      held.code[i] = block * run + i < zero.rows ? zero.data[(block * run + i) * zero.stride + col]
                                                 : std::uint8_t{0};
    unsigned word[bits];
    to_words<bits>(held.code, word);
#pragma unroll
    for (int w = 0; w < bits; ++w)
      if (block * bits + w < words.rows)
        words.data[(block * bits + w) * words.stride + col] = word[w];
  }
}

template <int bits>
__global__ void unpack_columns_kernel(Matrix<const std::uint32_t> words,
                                      Matrix<std::uint8_t> zero) {
  const std::int64_t col = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (col >= zero.cols) return;
  for (std::int64_t block = blockIdx.y; block * run < zero.rows; block += gridDim.y) {
    unsigned word[bits];
#pragma unroll
    for (int w = 0; w < bits; ++w)
      word[w] =
          block * bits + w < words.rows ? words.data[(block * bits + w) * words.stride + col] : 0u;
    Run held;
    to_codes<bits>(word, held.code);
#pragma unroll
    for (int i = 0; i < run; ++i)
      if (block * run + i < zero.rows)
        zero.data[(block * run + i) * zero.stride + col] = held.code[i];
  }
}

// operation(std::integral_constant<int, bits>); bits has been checked.
template <class Operation>
void with_bits(int bits, Operation operation) {
  switch (bits) {
    case 2: return operation(std::integral_constant<int, 2>{});
    case 3: return operation(std::integral_constant<int, 3>{});
    case 4: return operation(std::integral_constant<int, 4>{});
    default: return operation(std::integral_constant<int, 8>{});
  }
}

// A block of threads transposes 64 columns of code (words' rows) by 32 words (256 rows of code)
// through shared memory, so that both sides are accessed along their rows.
constexpr int tile_k = 64;
constexpr int tile_words = 32;
constexpr int lanes = 32;
constexpr int warps = threads / lanes;

__device__ constexpr int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};

__global__ void pack_awq_kernel(Matrix<const std::uint8_t> code, Matrix<std::uint32_t> words) {
  __shared__ unsigned tile[tile_k][tile_words + 1];
  const std::int64_t first_k = std::int64_t{blockIdx.x} * tile_k;
  const std::int64_t first_word = std::int64_t{blockIdx.y} * tile_words;
  const int lane = static_cast<int>(threadIdx.x % lanes);
  const int my_warp = static_cast<int>(threadIdx.x / lanes);
  for (int c = my_warp; c < tile_words && first_word + c < words.cols; c += warps)
    for (int k = lane; k < tile_k && first_k + k < words.rows; k += lanes) {
      const std::uint8_t* from = code.data + (first_word + c) * 8 * code.stride + first_k + k;
      unsigned word = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) word |= (from[order[i] * code.stride] & 15u) << (4 * i);
      tile[k][c] = word;
    }
  __syncthreads();
  for (int k = my_warp; k < tile_k && first_k + k < words.rows; k += warps)
    if (first_word + lane < words.cols)
      words.data[(first_k + k) * words.stride + first_word + lane] = tile[k][lane];
}

__global__ void unpack_awq_kernel(Matrix<const std::uint32_t> words, Matrix<std::uint8_t> code) {
  __shared__ unsigned tile[tile_k][tile_words + 1];
  const std::int64_t first_k = std::int64_t{blockIdx.x} * tile_k;
  const std::int64_t first_word = std::int64_t{blockIdx.y} * tile_words;
  const int lane = static_cast<int>(threadIdx.x % lanes);
  const int my_warp = static_cast<int>(threadIdx.x / lanes);
  for (int k = my_warp; k < tile_k && first_k + k < words.rows; k += warps)
    if (first_word + lane < words.cols)
      tile[k][lane] = words.data[(first_k + k) * words.stride + first_word + lane];
  __syncthreads();
  for (int c = my_warp; c < tile_words && first_word + c < words.cols; c += warps)
    for (int k = lane; k < tile_k && first_k + k < words.rows; k += lanes) {
      std::uint8_t* to = code.data + (first_word + c) * 8 * code.stride + first_k + k;
      const unsigned word = tile[k][c];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        to[order[i] * code.stride] = static_cast<std::uint8_t>(word >> (4 * i) & 15u);
    }
}

dim3 awq_grid(Matrix<const std::uint32_t> words) {
  return {static_cast<unsigned>((words.rows + tile_k - 1) / tile_k),
          static_cast<unsigned>((words.cols + tile_words - 1) / tile_words)};
}

}  // namespace

void pack_rows(Matrix<const std::uint8_t> code, int bits, Matrix<std::uint32_t> words,
               Stream& stream) {
  if (code.size() == 0) return;
  const dim3 grid = run_grid(code.rows, (code.cols + run - 1) / run);
  const cudaStream_t queue = stream.cuda().stream;
  with_bits(bits, [&](auto width) {
    if (rows_aligned(code, alignof(Run)) && rows_aligned(words, alignof(Words<width()>)))
      pack_rows_kernel<width(), true><<<grid, threads, 0, queue>>>(code, words);
    else
      pack_rows_kernel<width(), false><<<grid, threads, 0, queue>>>(code, words);
  });
  check_launch();
}

void unpack_rows(Matrix<const std::uint32_t> words, int bits, Matrix<std::uint8_t> code,
                 Stream& stream) {
  if (code.size() == 0) return;
  const dim3 grid = run_grid(code.rows, (code.cols + run - 1) / run);
  const cudaStream_t queue = stream.cuda().stream;
  with_bits(bits, [&](auto width) {
    if (rows_aligned(code, alignof(Run)) && rows_aligned(words, alignof(Words<width()>)))
      unpack_rows_kernel<width(), true><<<grid, threads, 0, queue>>>(words, code);
    else
      unpack_rows_kernel<width(), false><<<grid, threads, 0, queue>>>(words, code);
  });
  check_launch();
}

void pack_columns(Matrix<const std::uint8_t> zero, int bits, Matrix<std::uint32_t> words,
                  Stream& stream) {
  if (zero.size() == 0) return;
  const dim3 grid = run_grid((zero.rows + run - 1) / run, zero.cols);
  with_bits(bits, [&](auto width) {
    pack_columns_kernel<width()><<<grid, threads, 0, stream.cuda().stream>>>(zero, words);
  });
  check_launch();
}

void unpack_columns(Matrix<const std::uint32_t> words, int bits, Matrix<std::uint8_t> zero,
                    Stream& stream) {
  if (zero.size() == 0) return;
  const dim3 grid = run_grid((zero.rows + run - 1) / run, zero.cols);
  with_bits(bits, [&](auto width) {
    unpack_columns_kernel<width()><<<grid, threads, 0, stream.cuda().stream>>>(words, zero);
  });
  check_launch();
}

void pack_awq(Matrix<const std::uint8_t> code, Matrix<std::uint32_t> words, Stream& stream) {
  if (words.size() == 0) return;
  pack_awq_kernel<<<awq_grid(words), threads, 0, stream.cuda().stream>>>(code, words);
  check_launch();
}

void unpack_awq(Matrix<const std::uint32_t> words, Matrix<std::uint8_t> code, Stream& stream) {
  if (words.size() == 0) return;
  unpack_awq_kernel<<<awq_grid(words), threads, 0, stream.cuda().stream>>>(words, code);
  check_launch();
}

}  // namespace qpipe::cuda
