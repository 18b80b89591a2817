#include "kernels/blockwise.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/simd.h"
#include "kernels/simd_half.h"

namespace qpipe {

namespace {

constexpr std::int64_t chunk_elements =
    4096;  // the largest block; a chunk is the work of one step of a thread
constexpr float smallest_absmax = 1e-38f;

// max |x| by its bits: NaN is above infinity.
QPIPE_SIMD_CLONES float largest_magnitude(const float* x, std::int64_t count) {
  std::uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < count; ++i)
    largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
  return std::bit_cast<float>(largest);
}

#define QPIPE_WIDEN(T)                                                                           \
  QPIPE_SIMD_CLONES void widen(const T* from, std::int64_t count, float* to) {                   \
    _Pragma("omp simd") for (std::int64_t i = 0; i < count; ++i) to[i] = simd_to_float(from[i]); \
  }
QPIPE_WIDEN(f16)
QPIPE_WIDEN(bf16)
QPIPE_WIDEN(float)
#undef QPIPE_WIDEN

// code = ordered[0] + Σ over the thresholds below x of the step to the next code.
struct CodeSteps {
  float threshold[15];
  std::int32_t step[15];
  std::int32_t first;
};

CodeSteps code_steps(const FourBitTable& table) {
  CodeSteps steps{};
  steps.first = table.ordered[0];
  for (std::size_t i = 0; i < 15; ++i) {
    steps.threshold[i] = table.threshold[i];
    steps.step[i] = int{table.ordered[i + 1]} - int{table.ordered[i]};
  }
  return steps;
}

// Written out for the compiler, which makes vectors of the loop around it but not of a nest of
// loops. NaN is above all thresholds.
template <std::size_t... k>
[[gnu::always_inline]] inline std::int32_t sum_of_steps(float x, const CodeSteps& steps,
                                                        std::index_sequence<k...>) {
  return (steps.first + ... + (x <= steps.threshold[k] ? 0 : steps.step[k]));
}

QPIPE_SIMD_CLONES void find_codes(const float* __restrict w, std::int64_t count, float reciprocal,
                                  const CodeSteps& __restrict steps,
                                  std::uint8_t* __restrict code) {
  const CodeSteps local = steps;
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i)
    code[i] = static_cast<std::uint8_t>(
        sum_of_steps(w[i] * reciprocal, local, std::make_index_sequence<15>{}));
}

QPIPE_SIMD_CLONES void pack_pairs(const std::uint8_t* code, std::int64_t pairs,
                                  std::uint8_t* packed) {
#pragma omp simd
  for (std::int64_t i = 0; i < pairs; ++i)
    packed[i] = static_cast<std::uint8_t>(code[2 * i] << 4 | code[2 * i + 1]);
}

template <class T>
void quantize_from(const T* w, std::int64_t count, const FourBitTable& table,
                   std::int64_t block_size, float* absmax, std::uint8_t* packed) {
  const CodeSteps steps = code_steps(table);
  const std::int64_t chunks = block_count(count, chunk_elements);
#pragma omp parallel for schedule(static)
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    alignas(64) float value[chunk_elements + 1];
    alignas(64) std::uint8_t code[chunk_elements + 1];
    const std::int64_t begin = chunk * chunk_elements;
    const std::int64_t size = std::min(chunk_elements, count - begin);
    widen(w + begin, size, value);
    for (std::int64_t at = 0; at < size; at += block_size) {
      const std::int64_t length = std::min(block_size, size - at);
      float largest = largest_magnitude(value + at, length);
      const float divisor = largest < smallest_absmax ? smallest_absmax : largest;
      float reciprocal = 1.0f / divisor;
      if (length < block_size) {
        for (std::int64_t i = at; i < size; ++i) value[i] /= divisor;
        reciprocal = 1.0f;
        largest = divisor;
      }
      absmax[(begin + at) / block_size] = largest;
      find_codes(value + at, length, reciprocal, steps, code + at);
    }
    if (size % 2 != 0) code[size] = table.ordered[7];  // of the value 0
    pack_pairs(code, (size + 1) / 2, packed + begin / 2);
  }
}

void store(float value, float& out) { out = value; }
void store(float value, f16& out) { out = to_f16(value); }
void store(float value, bf16& out) { out = to_bf16(value); }

template <class T>
void dequantize_to(const std::uint8_t* packed, const float* absmax, const FourBitTable& table,
                   std::int64_t block_size, T* w, std::int64_t count) {
#pragma omp parallel for schedule(static)
  for (std::int64_t block = 0; block < block_count(count, block_size); ++block) {
    T value[16];
    for (std::size_t code = 0; code < 16; ++code)
      store(table.value[code] * absmax[block], value[code]);
    const std::int64_t begin = block * block_size;
    const std::int64_t end = std::min(begin + block_size, count);
    std::int64_t i = begin;
    for (; i + 2 <= end; i += 2) {
      const std::uint8_t pair = packed[i / 2];
      w[i] = value[pair >> 4];
      w[i + 1] = value[pair & 15];
    }
    if (i < end) w[i] = value[packed[i / 2] >> 4];
  }
}

void check_blocks(std::int64_t elements, std::int64_t block_size, std::int64_t maxima,
                  std::int64_t bytes) {
  require(is_block_size(block_size),
          "blockwise: block_size must be a power of two from 32 to 4096");
  require(maxima == block_count(elements, block_size),
          "blockwise: absmax must have one element for each block");
  require(bytes == (elements + 1) / 2,
          "blockwise: packed must have one byte for each two elements");
}

template <class Void>
void check_weight(const AnyMatrix<Void>& w) {
  require(w.dtype == DType::f32 || w.dtype == DType::f16 || w.dtype == DType::bf16,
          "blockwise: w must be f32, f16 or bf16");
  require(w.contiguous() || w.rows <= 1, "blockwise: w must be contiguous");
}

// Σ of 256 elements (absent ones are 0) as a tree: i + 128, then i + 64, … The CUDA kernel adds in
// the same order.
double tree_sum(std::array<double, 256>& x) {
  for (std::size_t half = 128; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

double block_sum(const float* x, std::int64_t count) {
  std::array<double, 256> lane{};
  std::copy_n(x, count, lane.begin());
  return tree_sum(lane);
}

// The mean: sums of 256 neighbours, dealt to 256 lanes in turn, then added as a tree.
float mean(const float* x, std::int64_t count) {
  std::array<double, 256> lane{};
  const std::int64_t blocks = block_count(count, absmax_block_size);
  std::vector<double> sums(static_cast<std::size_t>(blocks));
#pragma omp parallel for schedule(static)
  for (std::int64_t b = 0; b < blocks; ++b)
    sums[static_cast<std::size_t>(b)] = block_sum(
        x + b * absmax_block_size, std::min(absmax_block_size, count - b * absmax_block_size));
  for (std::size_t b = 0; b < sums.size(); ++b) lane[b % 256] += sums[b];
  return static_cast<float>(tree_sum(lane) / static_cast<double>(count));
}

// x → x̃ → code, see the header; NaN as −1.
std::uint8_t map_code(float x, const MapThresholds& thresholds) {
  x = x > -1.0f ? std::min(x, 1.0f) : -1.0f;
  const auto step = static_cast<std::int32_t>(std::fma((x + 1.0f) * 0.5f, 65535.0f, 0.5f));
  const float nearest = -1.0f + static_cast<float>(2 * step) / 65535.0f;
  const auto below =
      std::lower_bound(std::begin(thresholds.value), std::end(thresholds.value), nearest);
  return static_cast<std::uint8_t>(below - std::begin(thresholds.value));
}

MapThresholds map_thresholds() {
  const auto map = dynamic_map();
  MapThresholds result{};
  for (std::size_t i = 0; i < 255; ++i) result.value[i] = 0.5f * (map[i] + map[i + 1]);
  return result;
}

}  // namespace

void quantize_blocks(ConstTensor w, FourBitKind kind, std::int64_t block_size, Matrix<float> absmax,
                     Matrix<std::uint8_t> packed, Stream& stream) {
  check_weight(w);
  check_blocks(w.size(), block_size, absmax.size(), packed.size());
  if (w.size() == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::quantize_blocks(w, kind, block_size, absmax, packed, stream);
  const FourBitTable table = four_bit_table(kind);
  switch (w.dtype) {
    case DType::f16:
      return quantize_from(static_cast<const f16*>(w.data), w.size(), table, block_size,
                           absmax.data, packed.data);
    case DType::bf16:
      return quantize_from(static_cast<const bf16*>(w.data), w.size(), table, block_size,
                           absmax.data, packed.data);
    default:
      return quantize_from(static_cast<const float*>(w.data), w.size(), table, block_size,
                           absmax.data, packed.data);
  }
}

void dequantize_blocks(Matrix<const std::uint8_t> packed, Matrix<const float> absmax,
                       FourBitKind kind, std::int64_t block_size, Tensor w, Stream& stream) {
  check_weight(w);
  check_blocks(w.size(), block_size, absmax.size(), packed.size());
  if (w.size() == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::dequantize_blocks(packed, absmax, kind, block_size, w, stream);
  const FourBitTable table = four_bit_table(kind);
  switch (w.dtype) {
    case DType::f16:
      return dequantize_to(packed.data, absmax.data, table, block_size, static_cast<f16*>(w.data),
                           w.size());
    case DType::bf16:
      return dequantize_to(packed.data, absmax.data, table, block_size, static_cast<bf16*>(w.data),
                           w.size());
    default:
      return dequantize_to(packed.data, absmax.data, table, block_size, static_cast<float*>(w.data),
                           w.size());
  }
}

std::array<float, 256> dynamic_map() {
  constexpr float power[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  std::array<float, 256> map{};
  std::size_t filled = 0;
  for (int i = 0; i < 7; ++i) {
    const int steps = 1 << i;
    const int half = (steps + 1) / 2;
    const float step = (1.0f - 0.1f) / static_cast<float>(steps);
    // linspace counts from the nearer end.
    const auto boundary = [&](int k) {
      return k < half ? std::fma(step, static_cast<float>(k), 0.1f)
                      : std::fma(-step, static_cast<float>(steps - k), 1.0f);
    };
    for (int k = 0; k < steps; ++k) {
      const float midpoint = (boundary(k) + boundary(k + 1)) / 2.0f;
      map[filled++] = power[i] * midpoint;
      map[filled++] = -power[i] * midpoint;
    }
  }
  map[filled++] = 0.0f;
  map[filled++] = 1.0f;
  std::sort(map.begin(), map.end());
  return map;
}

void quantize_absmax(Matrix<const float> absmax, Matrix<float> offset, Matrix<std::uint8_t> code,
                     Matrix<float> nested_absmax, Stream& stream) {
  const std::int64_t count = absmax.size();
  require(count > 0 && offset.size() == 1 && code.size() == count &&
              nested_absmax.size() == block_count(count, absmax_block_size),
          "quantize_absmax: absmax and code must be [1, n] with n > 0, offset [1, 1], "
          "nested_absmax [1, n/256 rounded up]");
  const MapThresholds thresholds = map_thresholds();
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::quantize_absmax(absmax, thresholds, offset, code, nested_absmax, stream);
  offset.data[0] = mean(absmax.data, count);
#pragma omp parallel for schedule(static)
  for (std::int64_t block = 0; block < nested_absmax.size(); ++block) {
    const std::int64_t begin = block * absmax_block_size;
    const std::int64_t size = std::min(absmax_block_size, count - begin);
    std::array<float, 256> y;
    for (std::int64_t i = 0; i < size; ++i)
      y[static_cast<std::size_t>(i)] = absmax.data[begin + i] - offset.data[0];
    const float largest = largest_magnitude(y.data(), size);
    nested_absmax.data[block] = largest;
    const float reciprocal = 1.0f / largest;
    for (std::int64_t i = 0; i < size; ++i)
      code.data[begin + i] =
          largest == 0.0f ? std::uint8_t{0}
                          : map_code(y[static_cast<std::size_t>(i)] * reciprocal, thresholds);
  }
}

void dequantize_absmax(Matrix<const std::uint8_t> code, Matrix<const float> map,
                       Matrix<const float> nested_absmax, std::int64_t block_size, float offset,
                       Matrix<float> absmax, Stream& stream) {
  require(block_size > 0 && map.size() == 256 && absmax.size() == code.size() &&
              nested_absmax.size() == block_count(code.size(), block_size),
          "dequantize_absmax: code and absmax must be [1, n], map [1, 256], nested_absmax [1, "
          "n/block_size rounded up]");
  if (code.size() == 0) return;
  if constexpr (has_cuda)
    if (stream.on_cuda())
      return cuda::dequantize_absmax(code, map, nested_absmax, block_size, offset, absmax, stream);
  for (std::int64_t i = 0; i < code.size(); ++i)
    absmax.data[i] = map.data[code.data[i]] * nested_absmax.data[i / block_size] + offset;
}

}  // namespace qpipe
