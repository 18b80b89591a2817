// Times of the quantization kernels on one GPU: accumulate_hessian, factor, gptq_sweep at the sizes
// of a 7B model. Median of 5.
#include <cstdio>
#include <numeric>
#include <vector>

#include "kernels/diagonal.h"
#include "kernels/factor.h"
#include "kernels/gptq_sweep.h"
#include "kernels/hessian.h"
#include "tests/bench/median_ms.h"
#include "tests/bench/noise.h"

namespace {

using namespace qpipe;

void report(const char* name, std::int64_t rows, std::int64_t d, double ms, double flop) {
  std::printf("%-20s %6ld x %-6ld %9.3f ms %8.1f TFLOP/s\n", name, static_cast<long>(rows),
              static_cast<long>(d), ms, flop / ms * 1e-9);
  std::fflush(stdout);
}

void run(std::int64_t d, std::int64_t tokens, std::int64_t rows, Stream& stream) {
  Noise noise;
  const auto size = [d](std::int64_t count) {
    return static_cast<double>(count) * static_cast<double>(d);
  };
  const Array<float> h(d, d, stream);
  {
    std::vector<bf16> x(static_cast<std::size_t>(tokens * d));
    float previous = 0.0f;
    for (bf16& value : x) {
      previous = 0.5f * previous + noise.next();  // neighbouring columns are correlated
      value = to_bf16(previous);
    }
    const TensorArray x_device(DType::bf16, tokens, d, stream);
    copy_to_device(x_device.view.data, x.data(), x.size() * sizeof(bf16), stream);
    const Array<float> maximum(1, d, stream);
    fill_zero(maximum.view.data, maximum.memory.bytes(), stream);
    const double maximum_ms = median_ms(stream, [&] { column_max_abs(x_device, maximum, stream); });
    std::printf("%-20s %6ld x %-6ld %9.3f ms %8.1f GB/s\n", "column_max_abs",
                static_cast<long>(tokens), static_cast<long>(d), maximum_ms,
                size(tokens) * 2e-6 / maximum_ms);
    std::vector<float> host_maximum(static_cast<std::size_t>(d));
    copy_to_host(host_maximum.data(), maximum.view.data, maximum.memory.bytes(), stream);
    std::vector<std::int32_t> host_exponent(host_maximum.size());
    hessian_exponents({host_maximum.data(), 1, d}, {host_exponent.data(), 1, d});
    const Array<std::int32_t> exponent(1, d, stream);
    copy_to_device(exponent.view.data, host_exponent.data(),
                   host_exponent.size() * sizeof(std::int32_t), stream);
    const Array<std::int64_t> sum(d, d, stream);
    fill_zero(sum.view.data, sum.memory.bytes(), stream);
    constexpr int log2_tokens = 18;
    // Useful work: the lower triangle only.
    report("accumulate_hessian", tokens, d,
           median_ms(stream,
                     [&] { accumulate_hessian(x_device, exponent, log2_tokens, 0, sum, stream); }),
           size(tokens) * size(1));
    report("finish_hessian", d, d,
           median_ms(stream,
                     [&] { finish_hessian(sum, exponent, log2_tokens, 6 * tokens, 0, h, stream); }),
           0.0);
  }

  const Array<float> diagonal_device(1, d, stream);
  diagonal(h, diagonal_device, stream);
  std::vector<float> diagonal_host(static_cast<std::size_t>(d));
  copy_to_host(diagonal_host.data(), diagonal_device.view.data, diagonal_device.memory.bytes(),
               stream);
  const double damp = 0.01 * std::accumulate(diagonal_host.begin(), diagonal_host.end(), 0.0) /
                      static_cast<double>(d);
  std::vector<std::int32_t> order(static_cast<std::size_t>(d));
  std::iota(order.begin(), order.end(), 0);
  const Array<std::int32_t> perm(1, d, stream);
  copy_to_device(perm.view.data, order.data(), order.size() * sizeof(std::int32_t), stream);
  const Array<float> n(d, d, stream);
  const Array<float> pivot(1, d, stream);
  bool success = true;
  report("factor", d, d,
         median_ms(stream, [&] { success = factor(h, perm, damp, n, pivot, stream) && success; }),
         size(d) * static_cast<double>(d) / 3.0);
  if (!success) std::printf("factor failed\n");

  std::vector<float> w(static_cast<std::size_t>(rows * d));
  for (float& value : w) value = 0.02f * noise.next();
  const Array<float> w_device(rows, d, stream);
  copy_to_device(w_device.view.data, w.data(), w.size() * sizeof(float), stream);
  const Array<std::uint8_t> code(rows, d, stream);
  const Array<float> loss(1, rows, stream);
  struct Setting {
    const char* name;
    SweepOptions options;
    std::int64_t rows;
  };
  for (const Setting& setting : {Setting{"sweep g128", {{4, true, 0.0f}, 128, false}, rows},
                                 Setting{"sweep g128", {{4, true, 0.0f}, 128, false}, rows / 2},
                                 Setting{"sweep g128", {{4, true, 0.0f}, 128, false}, rows / 8},
                                 Setting{"sweep g32", {{4, true, 0.0f}, 32, false}, rows},
                                 Setting{"sweep g128 mse 2.4", {{4, true, 2.4f}, 128, false}, rows},
                                 Setting{"sweep per row", {{4, true, 0.0f}, d, false}, rows}}) {
    const std::int64_t groups = d / setting.options.group_size;
    const Array<float> scale(setting.rows, groups, stream);
    const Array<std::uint8_t> zero(setting.rows, groups, stream);
    // Useful work: the upper triangle of N.
    report(setting.name, setting.rows, d,
           median_ms(stream,
                     [&] {
                       gptq_sweep(w_device.view.row_range(0, setting.rows), n, pivot,
                                  setting.options, {}, scale, zero,
                                  code.view.row_range(0, setting.rows),
                                  loss.view.col_range(0, setting.rows), stream);
                     }),
           size(setting.rows) * static_cast<double>(d));
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
  run(4096, 16384, 11008, stream);
  run(11008, 16384, 4096, stream);
  return 0;
}
