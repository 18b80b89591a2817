#include "kernels/cuda_handles.h"
#include "kernels/pack.h"
#include "kernels/pack_fields.h"

namespace qpipe::cuda {

namespace {

// A block moves tile_outputs outputs by tile_inputs inputs through shared memory, so that codes are
// read along the inputs and words written along the outputs, both contiguous.
constexpr int tile_outputs = 64;
constexpr int tile_inputs = 96;  // whole periods of every width (3 bits: 32 codes)
constexpr int threads = 256;
constexpr int pitch =
    tile_inputs + 4;  // rows start 25 words apart: column reads fall into different banks

template <int bits>
__global__ void __launch_bounds__(threads)
    pack_weights_kernel(Matrix<const std::uint8_t> code, Matrix<std::uint32_t> words) {
  using P = Period<bits>;
  __shared__ __align__(4) std::uint8_t tile[tile_outputs][pitch];
  const std::int64_t n0 = std::int64_t{blockIdx.y} * tile_outputs;
  const std::int64_t k0 = std::int64_t{blockIdx.x} * tile_inputs;
  const int outputs = static_cast<int>(min(std::int64_t{tile_outputs}, code.rows - n0));
  const int inputs = static_cast<int>(min(std::int64_t{tile_inputs}, code.cols - k0));
  for (int index = static_cast<int>(threadIdx.x); index < outputs * inputs; index += threads)
    tile[index / inputs][index % inputs] =
        code.data[(n0 + index / inputs) * code.stride + k0 + index % inputs];
  __syncthreads();
  const int periods = inputs / P::fields;
  for (int index = static_cast<int>(threadIdx.x); index < periods * outputs; index += threads) {
    const int period = index / outputs;
    const int n = index % outputs;
    std::uint32_t word[P::words];
    P::join([&](int k) { return std::uint32_t{tile[n][period * P::fields + k]}; }, word);
    const std::int64_t row = (k0 / P::fields + period) * P::words;
    for (int i = 0; i < P::words; ++i) words.data[(row + i) * words.stride + n0 + n] = word[i];
  }
}

template <int bits>
__global__ void __launch_bounds__(threads)
    unpack_weights_kernel(Matrix<const std::uint32_t> words, Matrix<std::uint8_t> code) {
  using P = Period<bits>;
  __shared__ __align__(4) std::uint8_t tile[tile_outputs][pitch];
  const std::int64_t n0 = std::int64_t{blockIdx.y} * tile_outputs;
  const std::int64_t k0 = std::int64_t{blockIdx.x} * tile_inputs;
  const int outputs = static_cast<int>(min(std::int64_t{tile_outputs}, code.rows - n0));
  const int inputs = static_cast<int>(min(std::int64_t{tile_inputs}, code.cols - k0));
  const int periods = inputs / P::fields;
  for (int index = static_cast<int>(threadIdx.x); index < periods * outputs; index += threads) {
    const int period = index / outputs;
    const int n = index % outputs;
    const std::int64_t row = (k0 / P::fields + period) * P::words;
    std::uint32_t word[P::words];
    for (int i = 0; i < P::words; ++i) word[i] = words.data[(row + i) * words.stride + n0 + n];
    P::split(word, [&](int k, std::uint32_t field) {
      tile[n][period * P::fields + k] = static_cast<std::uint8_t>(field);
    });
  }
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < outputs * inputs; index += threads)
    code.data[(n0 + index / inputs) * code.stride + k0 + index % inputs] =
        tile[index / inputs][index % inputs];
}

// One thread a period of one group; zeros are few.
template <int bits>
__global__ void pack_zeros_kernel(Matrix<const std::uint8_t> zero, int offset,
                                  Matrix<std::uint32_t> words) {
  using P = Period<bits>;
  constexpr std::uint32_t mask = (1u << bits) - 1u;
  const std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t g = index % zero.cols;
  const std::int64_t period = index / zero.cols;
  if (period >= zero.rows / P::fields) return;
  std::uint32_t word[P::words];
  P::join(
      [&](int k) {
        return (zero.data[(period * P::fields + k) * zero.stride + g] +
                static_cast<std::uint32_t>(offset)) &
               mask;
      },
      word);
  for (int i = 0; i < P::words; ++i) words.data[g * words.stride + period * P::words + i] = word[i];
}

template <int bits>
__global__ void unpack_zeros_kernel(Matrix<const std::uint32_t> words, int offset,
                                    Matrix<std::uint8_t> zero) {
  using P = Period<bits>;
  constexpr std::uint32_t mask = (1u << bits) - 1u;
  const std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t g = index % zero.cols;
  const std::int64_t period = index / zero.cols;
  if (period >= zero.rows / P::fields) return;
  std::uint32_t word[P::words];
  for (int i = 0; i < P::words; ++i) word[i] = words.data[g * words.stride + period * P::words + i];
  P::split(word, [&](int k, std::uint32_t field) {
    zero.data[(period * P::fields + k) * zero.stride + g] =
        static_cast<std::uint8_t>((field - static_cast<std::uint32_t>(offset)) & mask);
  });
}

__global__ void pack_scales_kernel(Matrix<const float> scale, Matrix<const std::int32_t> place,
                                   Matrix<f16> half, std::int32_t* inexact) {
  const std::int64_t index = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (index >= scale.rows * scale.cols) return;
  const std::int64_t n = index % scale.rows;
  const std::int64_t g = index / scale.rows;
  const float value = scale.data[n * scale.stride + g];
  const __half stored = __float2half_rn(value);
  if (!isfinite(value) || __half2float(stored) != value)
    *inexact = 1;  // all that write write the same
  half.data[place.data[g] * half.stride + n].bits = __half_as_ushort(stored);
}

unsigned blocks(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

dim3 weight_grid(std::int64_t out, std::int64_t in) {
  return {blocks(in, tile_inputs), blocks(out, tile_outputs)};
}

// Calls launch(width) with bits as a compile-time constant.
template <class Launch>
void with_bits(int bits, Launch launch) {
  switch (bits) {
    case 2: launch(std::integral_constant<int, 2>{}); break;
    case 3: launch(std::integral_constant<int, 3>{}); break;
    case 4: launch(std::integral_constant<int, 4>{}); break;
    default: launch(std::integral_constant<int, 8>{});
  }
  check_launch();
}

}  // namespace

void pack_weights(Matrix<const std::uint8_t> code, int bits, Matrix<std::uint32_t> words,
                  Stream& stream) {
  if (code.size() == 0) return;
  with_bits(bits, [&](auto width) {
    pack_weights_kernel<width.value>
        <<<weight_grid(code.rows, code.cols), threads, 0, stream.cuda().stream>>>(code, words);
  });
}

void unpack_weights(Matrix<const std::uint32_t> words, int bits, Matrix<std::uint8_t> code,
                    Stream& stream) {
  if (code.size() == 0) return;
  with_bits(bits, [&](auto width) {
    unpack_weights_kernel<width.value>
        <<<weight_grid(code.rows, code.cols), threads, 0, stream.cuda().stream>>>(words, code);
  });
}

void pack_zeros(Matrix<const std::uint8_t> zero, int bits, int offset, Matrix<std::uint32_t> words,
                Stream& stream) {
  if (zero.size() == 0) return;
  with_bits(bits, [&](auto width) {
    const std::int64_t periods = zero.rows / Period<width.value>::fields * zero.cols;
    pack_zeros_kernel<width.value>
        <<<blocks(periods, threads), threads, 0, stream.cuda().stream>>>(zero, offset, words);
  });
}

void unpack_zeros(Matrix<const std::uint32_t> words, int bits, int offset,
                  Matrix<std::uint8_t> zero, Stream& stream) {
  if (zero.size() == 0) return;
  with_bits(bits, [&](auto width) {
    const std::int64_t periods = zero.rows / Period<width.value>::fields * zero.cols;
    unpack_zeros_kernel<width.value>
        <<<blocks(periods, threads), threads, 0, stream.cuda().stream>>>(words, offset, zero);
  });
}

void pack_scales(Matrix<const float> scale, Matrix<const std::int32_t> place, Matrix<f16> half,
                 Matrix<std::int32_t> inexact, Stream& stream) {
  if (scale.size() == 0) return;
  pack_scales_kernel<<<blocks(scale.size(), threads), threads, 0, stream.cuda().stream>>>(
      scale, place, half, inexact.data);
  check_launch();
}

}  // namespace qpipe::cuda
