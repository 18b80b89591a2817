#include "stages/formats/gptq_format.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "kernels/activation.h"
#include "kernels/pack.h"
#include "kernels/quantize_groups.h"
#include "stages/formats/packing.h"

namespace qpipe {

std::vector<NamedTensor> gptq_tensors(const std::string& module, std::int64_t out_features,
                                      std::int64_t in_features, int bits, std::int64_t group_size) {
  const std::int64_t groups = group_size > 0 ? in_features / group_size : 1;
  return {{module + ".qweight", DType::i32, {in_features * bits / 32, out_features}},
          {module + ".qzeros", DType::i32, {groups, out_features * bits / 32}},
          {module + ".scales", DType::f16, {groups, out_features}},
          {module + ".g_idx", DType::i32, {in_features}}};
}

std::vector<PackedTensor> pack_gptq(const std::string& module, const QuantizedLinear& q,
                                    GptqFormat format, Stream& stream) {
  const std::int64_t out = q.code.view.rows;
  const std::int64_t in = q.code.view.cols;
  const std::int64_t groups = q.scale.view.cols;
  const int bits = q.settings.bits;
  const auto infos = gptq_tensors(module, out, in, bits, q.settings.group_size);
  std::vector<PackedTensor> tensors;

  Array<std::uint32_t> qweight(in * bits / 32, out, stream);
  pack_weights(q.code, bits, qweight, stream);
  tensors.push_back(downloaded_tensor(infos[0], qweight.view, stream));

  const auto place = upload(q.stored_group, stream);  // of groups as solved
  Array<std::uint32_t> qzeros(groups, out * bits / 32, stream);
  pack_zeros(stored_zeros(q, place, stream), bits, format == GptqFormat::v1 ? -1 : 0, qzeros,
             stream);
  tensors.push_back(downloaded_tensor(infos[1], qzeros.view, stream));

  tensors.push_back(packed_scales(infos[2], q, place, stream));

  std::vector<std::int32_t> g_idx(q.group_of.size());
  for (std::size_t k = 0; k < g_idx.size(); ++k)
    g_idx[k] = q.stored_group[static_cast<std::size_t>(q.group_of[k])];
  tensors.push_back(packed_tensor(infos[3], g_idx));
  return tensors;
}

void zeros_v1_to_v2(std::vector<unsigned char>& qzeros, int bits) {
  // Fields of one row of qzeros form a bitstream of whole words; 3-bit fields repeat every three
  // words.
  const std::size_t words = qzeros.size() / 4;
  const std::size_t period = bits == 3 ? 3 : 1;
  const std::uint32_t mask = (1u << bits) - 1u;
  std::vector<std::uint32_t> stream(words);
  std::memcpy(stream.data(), qzeros.data(), qzeros.size());
  for (std::size_t begin = 0; begin + period <= words; begin += period) {
    std::array<std::uint32_t, 3> result{};
    for (std::size_t k = 0; k < 32 * period / static_cast<std::size_t>(bits); ++k) {
      const std::size_t bit = k * static_cast<std::size_t>(bits);
      const std::size_t word = bit / 32;
      const unsigned shift = bit % 32;
      std::uint64_t pair = stream[begin + word];
      if (word + 1 < period) pair |= std::uint64_t{stream[begin + word + 1]} << 32;
      const std::uint64_t field = ((pair >> shift) + 1u) & mask;
      result[word] |= static_cast<std::uint32_t>(field << shift);
      if (shift + static_cast<unsigned>(bits) > 32)
        result[word + 1] |= static_cast<std::uint32_t>(field >> (32 - shift));
    }
    std::copy_n(result.begin(), period, stream.begin() + static_cast<std::ptrdiff_t>(begin));
  }
  std::memcpy(qzeros.data(), stream.data(), qzeros.size());
}

void unpack_gptq(const PackedLinearView& packed, GptqFormat format, Tensor weight, Stream& stream) {
  const std::int64_t out = packed.qweight.cols;
  const std::int64_t in = packed.g_idx.cols;
  const std::int64_t groups = packed.scales.rows;
  const int bits = static_cast<int>(packed.qweight.rows * 32 / in);
  Array<std::uint8_t> code(out, in, stream);
  unpack_weights(packed.qweight, bits, code, stream);
  Array<std::uint8_t> zero(out, groups, stream);
  unpack_zeros(packed.qzeros, bits, format == GptqFormat::v1 ? -1 : 0, zero, stream);

  Array<float> scales(groups, out, stream);
  convert(packed.scales, scales.view, stream);
  const auto by_group = download_matrix(scales.view, stream);
  std::vector<float> by_row(by_group.size());
  for (std::int64_t g = 0; g < groups; ++g)
    for (std::int64_t n = 0; n < out; ++n)
      by_row[static_cast<std::size_t>(n * groups + g)] =
          by_group[static_cast<std::size_t>(g * out + n)];
  Array<float> scale(out, groups, stream);
  copy_to_device(scale.view.data, by_row.data(), by_row.size() * sizeof(float), stream);
  dequantize(code, scale, zero, packed.g_idx, weight, stream);
  stream.synchronize();
}

nlohmann::json gptq_config_json(const GptqConfig& config) {
  const LinearSettings& s = config.settings;
  const std::string format = config.format == GptqFormat::v1 ? "gptq" : "gptq_v2";
  // Static groups leave g_idx trivial, so that loaders must not treat the file as act-ordered.
  const bool stored_desc_act = s.desc_act && !s.static_groups && s.group_size > 0;
  nlohmann::json json{{"quant_method", "gptq"},
                      {"bits", s.bits},
                      {"group_size", s.group_size},
                      {"desc_act", stored_desc_act},
                      {"sym", s.symmetric},
                      {"lm_head", false},
                      {"checkpoint_format", format},
                      {"format", format},
                      {"method", "gptq"},
                      {"pack_dtype", "int32"},
                      {"meta",
                       {{"quantizer", nlohmann::json::array({"qpipe:" + config.version})},
                        {"damp_percent", s.damp_percent},
                        {"damp_auto_increment", s.damp_increment},
                        {"static_groups", s.static_groups},
                        {"act_group_aware", s.act_group_aware},
                        {"true_sequential", config.true_sequential},
                        {"mse", s.mse_norm}}}};
  if (!config.dynamic.is_null()) json["dynamic"] = config.dynamic;
  return json;
}

}  // namespace qpipe
