// Times of AWQ's parts on one GPU at the shapes of a 7B model, beside their floors: bytes at 3.35
// TB/s or FLOPs at the dense tensor rate of the type that the part computes in (H100 SXM datasheet:
// bf16 and fp16 989, fp32 67 TFLOP/s). Median of 5.
//
// Floors of a layer with 20 candidates (hidden 4096, ffn 11008), at 989 TFLOP/s:
//   exact, q k v:      21 passes over 65,536 tokens · (4 · 2 · 4096² + attention 2 · 2048 · 4096)
//   FLOP = 208 TFLOP, 0.21 s exact, gate up:    21 passes · 3 · 2 · 4096 · 11008 FLOP = 372 TFLOP,
//   0.38 s Gram losses:       Σ 20 · out · d², half of the products by symmetry: q k v 4.1, o 1.4,
//   gate up 7.4, down 9.9 TFLOP, 23 ms clip search:       10 limits · 2 · 128 FLOP for each weight
//   of v, o and the MLP at 67 TFLOP/s: 0.43 TFLOP, 6.4 ms mean magnitudes:   two passes over
//   262,144 tokens of the four inputs: 24 GB, 7.3 ms
#include <cstdio>
#include <vector>

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/clip_search.h"
#include "kernels/column_statistics.h"
#include "kernels/difference.h"
#include "kernels/gram_loss.h"
#include "kernels/hessian.h"
#include "kernels/linear.h"
#include "kernels/pack_rows.h"
#include "kernels/quantize_groups.h"
#include "kernels/scaled_rounding.h"
#include "kernels/scaled_rounding_loss.h"
#include "kernels/scaling.h"
#include "tests/bench/median_ms.h"

namespace {

using namespace qpipe;

constexpr std::int64_t hidden = 4096;
constexpr std::int64_t ffn = 11008;
constexpr std::int64_t tokens = 16384;  // a block
constexpr std::int64_t seqlen = 2048;
constexpr std::int64_t group = 128;
constexpr GridOptions grid{4, false, 0.0f};

constexpr double bytes_per_ms = 3.35e9;
constexpr double half_flop_per_ms = 989e9;
constexpr double float_flop_per_ms = 67e9;

void report(const char* name, std::int64_t rows, std::int64_t d, double floor_ms, double ms) {
  std::printf("%-34s %6ld x %-6ld floor %8.3f ms  %8.3f ms  %5.1f %%\n", name,
              static_cast<long>(rows), static_cast<long>(d), floor_ms, ms, 100.0 * floor_ms / ms);
  std::fflush(stdout);
}

// Roughly normal values of a type, times `scale`.
TensorArray noise(DType dtype, std::int64_t rows, std::int64_t cols, float scale, Stream& stream) {
  std::uint64_t state = 1;
  std::vector<float> values(static_cast<std::size_t>(rows * cols));
  for (float& value : values) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    float sum = 0.0f;
    for (int shift = 0; shift < 64; shift += 16)
      sum += static_cast<float>((state >> shift) & 0xffffu);
    value = scale * (sum * 0x1p-16f - 2.0f) * 1.7320508f;
  }
  const Array<float> wide(rows, cols, stream);
  copy_to_device(wide.view.data, values.data(), values.size() * sizeof(float), stream);
  TensorArray result(dtype, rows, cols, stream);
  convert(wide.view, result, stream);
  return result;
}

double product(std::int64_t a, std::int64_t b) {
  return static_cast<double>(a) * static_cast<double>(b);
}

// A weight [out, d] with the Hessian of its input.
void weight_parts(std::int64_t out, std::int64_t d, Stream& stream) {
  const TensorArray w = noise(DType::bf16, out, d, 0.02f, stream);
  const double n = product(out, d);
  const std::vector<float> ones(static_cast<std::size_t>(d), 1.1f);
  const Array<float> s(1, d, stream);
  copy_to_device(s.view.data, ones.data(), ones.size() * sizeof(float), stream);
  const Array<float> h(d, d, stream);
  {
    const TensorArray x = noise(DType::bf16, 4096, d, 1.0f, stream);
    const std::vector<std::int32_t> exponents(static_cast<std::size_t>(d), 3);
    const Array<std::int32_t> exponent(1, d, stream);
    copy_to_device(exponent.view.data, exponents.data(), exponents.size() * sizeof(std::int32_t),
                   stream);
    const Array<std::int64_t> sum(d, d, stream);
    fill_zero(sum.view.data, sum.memory.bytes(), stream);
    accumulate_hessian(x, exponent, 12, 0, sum, stream);
    finish_hessian(sum, exponent, 12, 4096, 0, h, stream);
  }
  const TensorArray narrow(DType::bf16, out, d, stream);
  const Array<float> wide(out, d, stream);
  report("scaled_rounding to bf16", out, d, 4 * n / bytes_per_ms,
         median_ms(stream, [&] { scaled_rounding(w, s, group, grid, narrow, stream); }));
  report("scaled_rounding to f32", out, d, 6 * n / bytes_per_ms,
         median_ms(stream, [&] { scaled_rounding(w, s, group, grid, wide.view, stream); }));
  report("gram_matrix", d, d, 5 * product(d, d) / bytes_per_ms,
         median_ms(stream, [&] { gram_matrix(h, stream); }));
  const GramMatrix gram = gram_matrix(h, stream);
  const Array<double> total(1, 1, stream);
  for (const std::int64_t rows : {std::int64_t{512}, std::int64_t{4096}}) {
    // δ H δᵀ is half of a product by symmetry.
    report("gram_loss", rows, d, product(rows, d) * static_cast<double>(d) / half_flop_per_ms,
           median_ms(stream, [&] {
             gram_loss(w.view.row_range(0, rows), wide.view.row_range(0, rows), gram, total,
                       stream);
           }));
  }
  {
    const Array<float> candidates(20, d, stream);
    for (std::int64_t c = 0; c < 20; ++c)
      copy_on_device(candidates.view.row(c), s.view.data, s.memory.bytes(), stream);
    const Array<double> losses((out + 511) / 512, 20, stream);
    report("scaled_rounding_losses, 20", out, d, 20 * n * static_cast<double>(d) / half_flop_per_ms,
           median_ms(stream, [&] {
             scaled_rounding_losses(w, candidates, group, grid, gram, 512, losses, stream);
           }));
  }
  const Array<float> limit(out, d / group, stream);
  scale_weight(w, s, {}, wide, stream);
  report("search_clip", out, d, 2 * n * clip_steps * static_cast<double>(group) / float_flop_per_ms,
         median_ms(stream, [&] { search_clip(wide, h, group, grid, limit, stream); }));
  report("scale_weight", out, d, 6 * n / bytes_per_ms,
         median_ms(stream, [&] { scale_weight(w, s, {}, wide, stream); }));
  report("clamp_groups", out, d, 8 * n / bytes_per_ms,
         median_ms(stream, [&] { clamp_groups(wide, limit, stream); }));
  const Array<std::int64_t> sum(1, d, stream);
  fill_zero(sum.view.data, sum.memory.bytes(), stream);
  report("accumulate_relative_magnitude", out, d, 2 * n / bytes_per_ms,
         median_ms(stream, [&] { accumulate_relative_magnitude(w, group, sum, stream); }));
  const Array<float> scale(out, d / group, stream);
  const Array<std::uint8_t> zero(out, d / group, stream);
  const Array<std::uint8_t> code(out, d, stream);
  std::vector<std::int32_t> groups(static_cast<std::size_t>(d));
  for (std::size_t c = 0; c < groups.size(); ++c)
    groups[c] = static_cast<std::int32_t>(c / static_cast<std::size_t>(group));
  const Array<std::int32_t> group_of(1, d, stream);
  copy_to_device(group_of.view.data, groups.data(), groups.size() * sizeof(std::int32_t), stream);
  report("find_grids", out, d, 4 * n / bytes_per_ms,
         median_ms(stream, [&] { find_grids(wide, group, grid, scale, zero, stream); }));
  report("round_to_grid", out, d, 5 * n / bytes_per_ms,
         median_ms(stream, [&] { round_to_grid(wide, scale, zero, group_of, 4, code, stream); }));
  report("dequantize to f32", out, d, 5 * n / bytes_per_ms,
         median_ms(stream, [&] { dequantize(code, scale, zero, group_of, wide.view, stream); }));
  const Array<std::uint32_t> words(d, out / 8, stream);
  report("pack_awq", out, d, 1.5 * n / bytes_per_ms,
         median_ms(stream, [&] { pack_awq(code, words, stream); }));
}

// One candidate on one block of tokens.
void token_parts(Stream& stream) {
  const auto t = [](std::int64_t d) { return product(tokens, d); };
  const auto time_linear = [&](std::int64_t in, std::int64_t out, DType y_type) {
    const TensorArray x = noise(DType::bf16, tokens, in, 1.0f, stream);
    const TensorArray w = noise(DType::bf16, out, in, 0.02f, stream);
    const TensorArray y(y_type, tokens, out, stream);
    report(y_type == DType::f32 ? "linear to f32" : "linear to bf16", in, out,
           2 * t(in) * static_cast<double>(out) / half_flop_per_ms,
           median_ms(stream, [&] { linear(x, w, {}, y, stream); }));
  };
  time_linear(hidden, hidden, DType::bf16);
  time_linear(hidden, hidden, DType::f32);
  time_linear(hidden, ffn, DType::bf16);
  time_linear(ffn, hidden, DType::f32);
  {
    HeadLayout heads{32, 32, 128, 128, 128, hidden, 2 * hidden};
    const TensorArray qkv = noise(DType::bf16, tokens, heads.width(), 1.0f, stream);
    const TensorArray y(DType::bf16, tokens, hidden, stream);
    AttentionOptions options;
    options.scale = 0.088f;
    report("attention", tokens, hidden,
           2 * t(hidden) * static_cast<double>(seqlen) / half_flop_per_ms,
           median_ms(stream, [&] { attention(qkv, heads, seqlen, options, y, stream); }));
    const Array<float> frequencies(1, 64, stream);
    fill_zero(frequencies.view.data, frequencies.memory.bytes(), stream);
    report("rope", tokens, hidden, 8 * t(hidden) / bytes_per_ms,
           median_ms(stream, [&] { rope(qkv, heads, frequencies, 1.0f, false, seqlen, stream); }));
  }
  {
    const TensorArray up = noise(DType::bf16, tokens, 2 * ffn, 1.0f, stream);
    const TensorArray y(DType::bf16, tokens, ffn, stream);
    report("gated_activation", tokens, ffn, 6 * t(ffn) / bytes_per_ms,
           median_ms(stream, [&] { gated_activation(up, Activation::silu, {}, y, stream); }));
  }
  const TensorArray a = noise(DType::f32, tokens, hidden, 1.0f, stream);
  const Array<double> total(1, 1, stream);
  fill_zero(total.view.data, sizeof(double), stream);
  report("add_squared_difference f32", tokens, hidden, 8 * t(hidden) / bytes_per_ms,
         median_ms(stream, [&] { add_squared_difference(a, a, total, stream); }));
  for (const std::int64_t d : {hidden, ffn}) {
    const TensorArray x = noise(DType::bf16, tokens, d, 1.0f, stream);
    const Array<float> maximum(1, d, stream);
    const std::vector<std::int32_t> exponents(static_cast<std::size_t>(d), 3);
    const Array<std::int32_t> exponent(1, d, stream);
    copy_to_device(exponent.view.data, exponents.data(), exponents.size() * sizeof(std::int32_t),
                   stream);
    const Array<std::int64_t> sum(1, d, stream);
    fill_zero(sum.view.data, sum.memory.bytes(), stream);
    fill_zero(maximum.view.data, maximum.memory.bytes(), stream);
    report("column_max_abs", tokens, d, 2 * t(d) / bytes_per_ms,
           median_ms(stream, [&] { column_max_abs(x, maximum, stream); }));
    report("accumulate_column_abs", tokens, d, 2 * t(d) / bytes_per_ms,
           median_ms(stream, [&] { accumulate_column_abs(x, exponent, 18, sum, stream); }));
  }
}

}  // namespace

int main() {
  if (qpipe::cuda_device_count() == 0) {
    std::printf("no CUDA device: nothing to time\n");
    return 0;
  }
  qpipe::Stream stream(qpipe::Backend::cuda, 0);
  std::printf("%s\n", stream.device_name().c_str());
  weight_parts(hidden, hidden, stream);
  weight_parts(ffn, hidden, stream);
  weight_parts(hidden, ffn, stream);
  token_parts(stream);
  return 0;
}
