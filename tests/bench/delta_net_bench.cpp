// Times of a gated delta net on one GPU at Qwen3.5-27B's shape, 8 sequences of 2048 tokens: what
// the mixer does besides its linears, beside the linears of its layer (the MLP's included), with
// the memory for all heads at once and with parts of it. Median of 5.
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/causal_conv.h"
#include "kernels/delta_gates.h"
#include "kernels/delta_rule.h"
#include "kernels/gated_norm.h"
#include "kernels/linear.h"
#include "tests/bench/median_ms.h"
#include "tests/bench/noise.h"

namespace {

using namespace qpipe;

constexpr std::int64_t sequences = 8, seqlen = 2048, tokens = sequences * seqlen;
constexpr std::int64_t hidden = 5120, ffn = 17408, conv = 4;

TensorArray values(std::int64_t rows, std::int64_t cols, float size, Stream& stream) {
  Noise noise;
  std::vector<bf16> on_host(static_cast<std::size_t>(rows * cols));
  for (bf16& value : on_host) value = to_bf16(size * noise.next());
  TensorArray array(DType::bf16, rows, cols, stream);
  copy_to_device(array.view.data, on_host.data(), on_host.size() * sizeof(bf16), stream);
  stream.synchronize();
  return array;
}

Array<float> floats(std::int64_t rows, std::int64_t cols, float value, Stream& stream) {
  const std::vector<float> on_host(static_cast<std::size_t>(rows * cols), value);
  Array<float> array(rows, cols, stream);
  copy_to_device(array.view.data, on_host.data(), on_host.size() * sizeof(float), stream);
  stream.synchronize();
  return array;
}

void report(const std::string& name, double ms) {
  std::printf("%-34s %9.3f ms\n", name.c_str(), ms);
  std::fflush(stdout);
}

double measure_linears(Stream& stream, const DeltaHeads& heads) {
  const std::int64_t projected = 2 * heads.keys() + 2 * heads.values() + 2 * heads.value_heads;
  double sum = 0.0;
  for (const auto& [name, rows, cols] :
       std::vector<std::tuple<std::string, std::int64_t, std::int64_t>>{
           {"in_proj", projected, hidden},
           {"out_proj", hidden, heads.values()},
           {"gate_proj, up_proj", 2 * ffn, hidden},
           {"down_proj", hidden, ffn}}) {
    const TensorArray x = values(tokens, cols, 1.0f, stream);
    const TensorArray w = values(rows, cols, 0.01f, stream);
    const TensorArray y(DType::bf16, tokens, rows, stream);
    const double ms = median_ms(stream, [&] { linear(x, w, {}, y, stream); });
    std::printf("%-34s %9.3f ms %8.1f TFLOP/s\n", name.c_str(), ms,
                2e-9 * static_cast<double>(tokens * rows * cols) / ms);
    sum += ms;
  }
  return sum;
}

double measure_mixer(Stream& stream, const DeltaHeads& heads, int parts) {
  const std::int64_t channels = 2 * heads.keys() + heads.values();
  const TensorArray x = values(tokens, channels, 1.0f, stream);
  const TensorArray z = values(tokens, heads.values(), 1.0f, stream);
  const TensorArray gates = values(tokens, heads.value_heads, 1.0f, stream);
  const Array<float> weight = floats(channels, conv, 0.3f, stream);
  const TensorArray decays = values(tokens, heads.decays(), 1.0f, stream);
  const Array<float> a_log = floats(1, heads.value_heads, 0.5f, stream);
  const Array<float> dt_bias = floats(1, heads.decays(), 0.5f, stream);
  const Array<float> norm = floats(1, heads.value_dim, 1.0f, stream);
  const TensorArray qkv(DType::bf16, tokens, channels, stream);
  const TensorArray y(DType::bf16, tokens, heads.values(), stream);
  const TensorArray scratch(DType::bf16, tokens, delta_rule_scratch(heads) / parts, stream);
  const Array<float> g(tokens, heads.decays(), stream);
  const Array<float> beta(tokens, heads.value_heads, stream);
  const HeadSlices slices{1, heads.value_heads, heads.value_heads};
  const HeadSlices decay_slices{1, heads.decays(), heads.decays()};
  const HeadSlices gate_slices{1, heads.values(), heads.values()};

  const double conv_ms =
      median_ms(stream, [&] { causal_conv(x, weight, {}, true, seqlen, qkv, stream); });
  const double gates_ms = median_ms(stream, [&] {
    log_decay(decays, decay_slices, a_log, dt_bias, g, stream);
    write_strength(gates, slices, beta, stream);
  });
  const Tensor all = qkv;
  const double rule_ms = median_ms(stream, [&] {
    delta_rule(all.col_range(0, heads.keys()), all.col_range(heads.keys(), heads.keys()),
               all.col_range(2 * heads.keys(), heads.values()), g, beta, heads, seqlen, y, scratch,
               stream);
  });
  const double norm_ms = median_ms(
      stream, [&] { gated_rms_norm(y, norm, 1e-6f, z, gate_slices, NormGate::silu, y, stream); });
  report("convolutions", conv_ms);
  report("gates", gates_ms);
  report("delta rule, memory / " + std::to_string(parts), rule_ms);
  report("gated norm", norm_ms);
  return conv_ms + gates_ms + rule_ms + norm_ms;
}

}  // namespace

int main() {
  Stream stream(Backend::cuda, 0);
  DeltaHeads heads{16, 48, 128, 128, false};
  const double linears = measure_linears(stream, heads);
  report("linears", linears);
  for (const bool of_channels : {false, true}) {  // Kimi-Linear's decays at the same shape
    heads.channel_decay = of_channels;
    std::printf("%s\n", of_channels ? "a decay for each channel" : "a decay for each head");
    for (const int parts : {1, 2, 4, 8}) {
      const double mixer = measure_mixer(stream, heads, parts);
      std::printf("%-34s %9.3f ms, %.0f %% of the linears\n", "mixer without linears", mixer,
                  100.0 * mixer / linears);
    }
  }
}
