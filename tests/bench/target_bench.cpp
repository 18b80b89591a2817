// What it costs to aim at the original's outputs, on one GPU, beside the plain factor and sweep: a
// group of a 7B model's linears. Median of 5.
#include <cstdio>
#include <numeric>
#include <vector>

#include "kernels/gptq_sweep.h"
#include "kernels/quantize_groups.h"
#include "kernels/triangular_inverse.h"
#include "stages/original_target.h"
#include "stages/transfer.h"
#include "tests/bench/median_ms.h"
#include "tests/bench/noise.h"

namespace {

using namespace qpipe;

void report(const char* name, std::int64_t rows, std::int64_t d, double ms, double flop) {
  std::printf("%-24s %6ld x %-6ld %9.3f ms %8.1f TFLOP/s\n", name, static_cast<long>(rows),
              static_cast<long>(d), ms, flop / ms * 1e-9);
  std::fflush(stdout);
}

Array<float> random_matrix(std::int64_t rows, std::int64_t cols, float scale, Stream& stream) {
  Noise noise;
  std::vector<float> row(static_cast<std::size_t>(cols * 64));
  for (float& value : row) value = scale * noise.next();
  Array<float> result(rows, cols, stream);
  for (std::int64_t r = 0; r < rows; r += 64)
    copy_to_device(
        result.view.row(r), row.data(),
        static_cast<std::size_t>(std::min<std::int64_t>(64, rows - r) * cols) * sizeof(float),
        stream);
  return result;
}

// N is the identity with small numbers above the diagonal, as of a well-conditioned Hessian.
void run(std::int64_t d, const std::vector<std::int64_t>& rows_of_linears, Stream& stream) {
  const Array<float> n(d, d, stream);
  {
    Noise noise;
    std::vector<float> host(static_cast<std::size_t>(d * d));
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t k = i; k < d; ++k)
        host[static_cast<std::size_t>(i * d + k)] =
            i == k ? 1.0f : 0.3f * noise.next() / static_cast<float>(d);
    copy_to_device(n.view.data, host.data(), n.memory.bytes(), stream);
  }
  const auto width = static_cast<std::size_t>(d);
  const Array<float> pivot = upload(std::vector<float>(width, 1.0f), stream);
  const Array<std::uint8_t> dead = upload(std::vector<std::uint8_t>(width), stream);
  std::vector<std::int32_t> order(width);
  std::iota(order.begin(), order.end(), 0);
  const Array<std::int32_t> perm = upload(order, stream);
  const SolvedOrder solved{n, pivot, perm, dead};
  const CrossMoments moments{
      {random_matrix(d, d, 0.01f, stream), random_matrix(d, d, 0.02f, stream)}};
  const std::int64_t rows =
      std::accumulate(rows_of_linears.begin(), rows_of_linears.end(), std::int64_t{0});
  const Array<float> w = random_matrix(rows, d, 0.02f, stream);
  std::vector<ConstTensor> weights;
  std::int64_t begin = 0;
  for (const std::int64_t count : rows_of_linears) {
    weights.push_back({w.view.row(begin), DType::f32, count, d, d});
    begin += count;
  }
  const double size = static_cast<double>(d) * static_cast<double>(d);
  const Array<float> inverse(d, d, stream);
  report("inverse of N", d, d, median_ms(stream, [&] { invert_unit_upper(n, inverse, stream); }),
         size * static_cast<double>(d) / 3.0);
  OriginalTarget target;
  report("alpha (with inverse)", d, d,
         median_ms(stream, [&] { target = original_target(moments, weights, solved, stream); }),
         0.0);
  report(
      "move", rows, d,
      median_ms(stream, [&] { move_to_target(target, moments.halves[0], solved, w.view, stream); }),
      4.0 * size * static_cast<double>(rows));
  const Array<std::uint8_t> code(rows, d, stream);
  const Array<float> loss(1, rows, stream);
  const Array<float> scale(rows, d / 128, stream);
  const Array<std::uint8_t> zero(rows, d / 128, stream);
  struct Setting {
    const char* name;
    SweepOptions options;
  };
  for (const Setting& setting :
       {Setting{"sweep, no search", {{4, true, 0.0f}, 128, false, false}},
        Setting{"sweep, mse 2.4", {{4, true, 2.4f}, 128, false, false}},
        Setting{"sweep, weighted search", {{4, true, 2.0f}, 128, false, true}}})
    report(setting.name, rows, d,
           median_ms(stream,
                     [&] {
                       gptq_sweep(w.view, n, pivot, setting.options, {}, scale, zero, code, loss,
                                  stream);
                     }),
           size * static_cast<double>(rows));
}

}  // namespace

int main() {
  if (qpipe::cuda_device_count() == 0) {
    std::printf("no CUDA device: nothing to time\n");
    return 0;
  }
  qpipe::Stream stream(qpipe::Backend::cuda, 0);
  std::printf("%s\n", stream.device_name().c_str());
  run(4096, {4096, 4096, 4096}, stream);
  run(4096, {11008, 11008}, stream);
  run(11008, {4096}, stream);
  return 0;
}
