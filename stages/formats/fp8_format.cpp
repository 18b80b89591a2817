#include "stages/formats/fp8_format.h"

#include <cmath>
#include <limits>

#include "kernels/activation.h"
#include "kernels/float8.h"
#include "stages/formats/packing.h"

namespace qpipe {

std::vector<NamedTensor> fp8_tensors(const std::string& module, std::int64_t out_features,
                                     std::int64_t in_features) {
  return {{module + ".weight", DType::f8_e4m3, {out_features, in_features}},
          {module + ".weight_scale_inv",
           DType::f32,
           {(out_features + float8_block - 1) / float8_block,
            (in_features + float8_block - 1) / float8_block}}};
}

std::vector<PackedTensor> pack_fp8(const std::string& module, Matrix<const std::uint8_t> code,
                                   Matrix<const float> scale, Stream& stream) {
  const auto infos = fp8_tensors(module, code.rows, code.cols);
  return {downloaded_tensor(infos[0], code, stream),
          packed_scales(infos[1], download_matrix(scale, stream))};
}

void unpack_fp8(Matrix<const std::uint8_t> code, ConstTensor weight_scale_inv, Tensor weight,
                Stream& stream) {
  Array<float> scale(weight_scale_inv.rows, weight_scale_inv.cols, stream);
  if (weight_scale_inv.dtype == DType::f8_e8m0) {  // DeepSeek's ue8m0: 2^(x − 127)
    std::vector<std::uint8_t> exponents(static_cast<std::size_t>(weight_scale_inv.size()));
    copy_to_host(exponents.data(), weight_scale_inv.data, exponents.size(), stream);
    std::vector<float> powers;
    for (const std::uint8_t exponent : exponents)
      powers.push_back(exponent == 255 ? std::numeric_limits<float>::quiet_NaN()
                                       : std::ldexp(1.0f, exponent - 127));
    copy_to_device(scale.view.data, powers.data(), scale.memory.bytes(), stream);
  } else {
    convert(weight_scale_inv, scale.view, stream);
  }
  const bool one = scale.view.size() == 1;  // of the whole tensor, or of its only block
  dequantize_float8(code, scale, one ? code.rows : float8_block, one ? code.cols : float8_block,
                    weight, stream);
  stream.synchronize();
}

nlohmann::json fp8_config_json(const std::vector<std::string>& modules_to_not_convert) {
  return {{"quant_method", "fp8"},
          {"activation_scheme", "dynamic"},
          {"weight_block_size", {float8_block, float8_block}},
          {"modules_to_not_convert", modules_to_not_convert}};
}

}  // namespace qpipe
