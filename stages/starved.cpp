#include "stages/starved.h"

#include <algorithm>
#include <utility>

#include "kernels/expert_rows.h"
#include "stages/transfer.h"

namespace qpipe {

std::vector<std::int64_t> tokens_of_experts(const Activations& activations, std::int64_t experts,
                                            std::int64_t sampled, Comm& comm) {
  std::vector<double> own(static_cast<std::size_t>(experts), 0.0);  // exact: far below 2⁵³
  for (const std::size_t local : sampled_blocks(activations, sampled))
    for (std::int64_t e = 0; e < experts; ++e)
      own[static_cast<std::size_t>(e)] +=
          static_cast<double>(activations.routes.at(local).rows_of(e).count);
  const std::vector<double> all = comm.all_gather(own);
  std::vector<std::int64_t> tokens(own.size(), 0);
  for (std::size_t i = 0; i < all.size(); ++i)
    tokens[i % tokens.size()] += static_cast<std::int64_t>(all[i]);
  return tokens;
}

std::int64_t missing_tokens(const Blocking& blocking, std::int64_t tokens, std::int64_t wanted,
                            std::int64_t sampled) {
  return std::clamp<std::int64_t>(wanted - tokens, 0, sampled_tokens(blocking, sampled));
}

std::vector<std::int32_t> extra_tokens(const Blocking& blocking, std::int64_t block,
                                       std::int64_t missing, std::int64_t sampled) {
  std::vector<std::int32_t> tokens;
  if (missing == 0 || !is_sampled(blocking, block, sampled)) return tokens;
  std::int64_t before = 0;  // sampled tokens
  for (std::int64_t b = 0; b < block; ++b)
    if (is_sampled(blocking, b, sampled)) before += blocking.block_size(b) * blocking.seqlen;
  const std::int64_t all = sampled_tokens(blocking, sampled);
  const std::int64_t size = blocking.block_size(block) * blocking.seqlen;
  const std::int64_t count = (before + size) * missing / all - before * missing / all;
  for (std::int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<std::int32_t>((2 * i + 1) * size / (2 * count)));
  return tokens;
}

void keep_extra_rows(const Layer& layer, std::int64_t expert_tokens, std::int64_t sampled,
                     Activations& activations, Comm& comm, Stream& stream) {
  activations.extra_rows.clear();
  const auto* experts = std::get_if<Experts>(&layer.spec->mlp);
  if (experts == nullptr || expert_tokens == 0) return;
  const auto count = static_cast<std::int64_t>(experts->experts.size());
  const std::vector<std::int64_t> tokens = tokens_of_experts(activations, count, sampled, comm);
  std::vector<std::pair<std::int64_t, std::int64_t>> starved;  // expert, missing
  for (std::int64_t e = 0; e < count; ++e)
    if (const std::int64_t missing = missing_tokens(
            activations.blocking, tokens[static_cast<std::size_t>(e)], expert_tokens, sampled);
        missing > 0)
      starved.emplace_back(e, missing);
  if (starved.empty()) return;
  for (const auto& [e, missing] : starved)
    activations.extra_rows[e].blocks.resize(activations.blocks());
  const auto keep = [&](std::size_t local, ConstTensor x) {
    for (const auto& [e, missing] : starved) {
      const std::vector<std::int32_t> chosen =
          extra_tokens(activations.blocking, activations.block(local), missing, sampled);
      if (chosen.empty()) continue;
      const auto rows = static_cast<std::int64_t>(chosen.size());
      TensorArray read(x.dtype, rows, x.cols, stream);
      gather_rows(x, upload(chosen, stream), 1, {}, read, stream);
      const TensorArray made(x.dtype, rows, experts->experts.front().width(), stream);
      expert_activation(*experts, layer, e, read, made, activations.scratch, stream);
      ExtraRows::Block& kept = activations.extra_rows[e].blocks[local];
      kept = {rows, std::vector<unsigned char>(made.memory.bytes())};
      copy_to_host(kept.values.data(), made.view.data, kept.values.size(), stream);
    }
  };
  visit_inputs(activations, keep, stream);
}

ConstTensor kept_rows(const Activations& activations, std::int64_t expert, std::size_t local,
                      Buffer& memory, Stream& stream) {
  const auto found = activations.extra_rows.find(expert);
  if (found == activations.extra_rows.end()) return {};
  const ExtraRows::Block& kept = found->second.blocks.at(local);
  if (kept.rows == 0) return {};
  if (memory.bytes() < kept.values.size()) {
    memory = {};  // not both at once
    memory = Buffer(kept.values.size(), stream);
  }
  copy_to_device(memory.data(), kept.values.data(), kept.values.size(), stream);
  const DType dtype = stream.compute_dtype();
  const auto elements = static_cast<std::int64_t>(kept.values.size() / size_of(dtype));
  return {memory.data(), dtype, kept.rows, elements / kept.rows};
}

}  // namespace qpipe
