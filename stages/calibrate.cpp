#include "stages/calibrate.h"

#include <algorithm>
#include <bit>
#include <stdexcept>

#include "kernels/diagonal.h"
#include "kernels/hessian.h"

namespace qpipe {

Hessian calibrate(const Activations& activations, const std::string& what, Comm& comm, Stream& stream) {
  const std::int64_t width = activations.blocks.empty() ? 0 : activations.blocks.front().input.cols;
  // A rank without blocks learns the width from the others.
  std::int64_t d = 0;
  for (const double value : comm.all_gather({static_cast<double>(width)})) d = std::max(d, static_cast<std::int64_t>(value));

  Array<float> maximum(1, d, stream);
  fill_zero(maximum.view.data, maximum.memory.bytes(), stream);
  for (const Block& block : activations.blocks) column_max_abs(block.input, maximum, stream);
  comm.all_reduce_max(maximum, stream);
  std::vector<float> host_maximum(static_cast<std::size_t>(d));
  copy_to_host(host_maximum.data(), maximum.view.data, maximum.memory.bytes(), stream);
  std::vector<std::int32_t> host_exponent(static_cast<std::size_t>(d));
  try {
    hessian_exponents({host_maximum.data(), 1, d}, {host_exponent.data(), 1, d});
  } catch (const std::domain_error& fault) {
    throw std::runtime_error(what + ": " + fault.what());
  }
  Array<std::int32_t> exponent(1, d, stream);
  copy_to_device(exponent.view.data, host_exponent.data(), host_exponent.size() * sizeof(std::int32_t), stream);

  const std::int64_t tokens = activations.blocking.tokens();
  const int log2_tokens = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(tokens - 1)));
  Hessian result{Array<float>(d, d, stream), std::vector<float>(static_cast<std::size_t>(d))};
  {
    Array<std::int64_t> sum(d, d, stream);
    fill_zero(sum.view.data, sum.memory.bytes(), stream);
    for (const Block& block : activations.blocks) accumulate_hessian(block.input, exponent, log2_tokens, result.matrix, sum, stream);
    comm.all_reduce_sum(sum, stream);
    finish_hessian(sum, exponent, log2_tokens, tokens, result.matrix, stream);
  }
  Array<float> on_device(1, d, stream);
  diagonal(result.matrix, on_device, stream);
  copy_to_host(result.diagonal.data(), on_device.view.data, on_device.memory.bytes(), stream);
  return result;
}

}  // namespace qpipe
