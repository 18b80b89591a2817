#include "stages/formats/awq_format.h"

#include <stdexcept>

#include "kernels/activation.h"
#include "kernels/pack_rows.h"
#include "kernels/quantize_groups.h"
#include "stages/formats/packing.h"

namespace qpipe {

std::vector<NamedTensor> awq_tensors(const std::string& module, std::int64_t out_features,
                                     std::int64_t in_features, std::int64_t group_size) {
  const std::int64_t groups = group_size > 0 ? in_features / group_size : 1;
  return {{module + ".qweight", DType::i32, {in_features, out_features / 8}},
          {module + ".qzeros", DType::i32, {groups, out_features / 8}},
          {module + ".scales", DType::f16, {groups, out_features}}};
}

std::vector<PackedTensor> pack_awq_linear(const std::string& module, const QuantizedLinear& q,
                                          Stream& stream) {
  const std::int64_t out = q.code.view.rows;
  const std::int64_t in = q.code.view.cols;
  const std::int64_t groups = q.scale.view.cols;
  if (q.settings.bits != 4)
    throw std::invalid_argument(module + ": the AWQ GEMM format holds 4-bit codes only");
  if (out % 32 != 0)
    throw std::invalid_argument(module + ": the AWQ GEMM format needs a multiple of 32 outputs");
  const auto infos = awq_tensors(module, out, in, q.settings.group_size);
  require_contiguous_groups(module, q);

  Array<std::uint32_t> qweight(in, out / 8, stream);
  pack_awq(q.code, qweight, stream);
  Array<std::uint32_t> qzeros(groups, out / 8, stream);
  const auto place = upload(q.stored_group, stream);
  pack_awq(stored_zeros(q, place, stream), qzeros, stream);
  return {downloaded_tensor(infos[0], qweight.view, stream),
          downloaded_tensor(infos[1], qzeros.view, stream),
          packed_scales(infos[2], q, place, stream)};
}

void unpack_awq_linear(const AwqLinearView& packed, Tensor weight, Stream& stream) {
  const std::int64_t out = weight.rows;
  const std::int64_t in = weight.cols;
  const std::int64_t groups = packed.scales.rows;
  require(packed.scales.cols == out && groups > 0 && in % groups == 0,
          "unpack_awq_linear: scales must be [groups, out]");
  Array<std::uint8_t> code(out, in, stream);
  unpack_awq(packed.qweight, code, stream);
  Array<std::uint8_t> zero(out, groups, stream);
  unpack_awq(packed.qzeros, zero, stream);
  Array<float> scales(groups, out, stream);
  convert(packed.scales, scales.view, stream);
  const Array<float> scale = upload_matrix(
      transposed(download_matrix(scales.view, stream), groups, out), out, groups, stream);
  dequantize(code, scale, zero, runs_of_columns(in, groups, stream), weight, stream);
  stream.synchronize();
}

nlohmann::json awq_config_json(std::int64_t group_size,
                               const std::vector<std::string>& modules_to_not_convert) {
  // "sym": false, because transformers' default would have GPTQModel's kernels ask for zeros of 8.
  nlohmann::json json{{"quant_method", "awq"},
                      {"version", "gemm"},
                      {"bits", 4},
                      {"group_size", group_size},
                      {"zero_point", true},
                      {"sym", false},
                      {"modules_to_not_convert", nullptr}};
  if (modules_to_not_convert.empty()) return json;
  json["modules_to_not_convert"] = modules_to_not_convert;
  // GPTQModel knows no modules_to_not_convert; its `dynamic` holds regular expressions, where "-:"
  // excludes what matches from the start.
  for (const std::string& name : modules_to_not_convert)
    json["dynamic"]["-:" + name + "$"] = nlohmann::json::object();
  return json;
}

}  // namespace qpipe
