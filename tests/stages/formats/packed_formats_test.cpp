// compressed-tensors, block FP8 and AWQ: tensors known beforehand, contents read back to the
// weights that solving left, configurations.
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/float4.h"
#include "kernels/float8.h"
#include "kernels/quantize_groups.h"
#include "stages/formats/awq_format.h"
#include "stages/formats/compressed_tensors_format.h"
#include "stages/formats/fp8_format.h"
#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

using nlohmann::json;

class PackedFormatsTest : public BackendTest {
 protected:
  // Round to nearest, as solve() does without a Hessian. act_group_aware: groups solved in reverse
  // order.
  QuantizedLinear solved(const std::vector<float>& w, std::int64_t out, std::int64_t in,
                         LinearSettings settings) {
    const std::int64_t groups = settings.groups(in);
    QuantizedLinear q;
    q.settings = settings;
    q.code = Array<std::uint8_t>(out, in, stream);
    q.scale = Array<float>(out, groups, stream);
    q.zero = Array<std::uint8_t>(out, groups, stream);
    const auto group_columns = settings.group_columns(in);
    for (std::int64_t k = 0; k < in; ++k)
      q.group_of.push_back(static_cast<std::int32_t>(k / group_columns));
    for (std::int64_t g = 0; g < groups; ++g)
      q.stored_group.push_back(static_cast<std::int32_t>(g));
    const Array<float> weights = upload_as(w, out, in);
    find_grids(weights, group_columns, {settings.bits, settings.symmetric, 0.0f}, q.scale, q.zero,
               stream);
    round_to_grid(weights, q.scale, q.zero, upload_as(q.group_of, 1, in), settings.bits, q.code,
                  stream);
    if (settings.act_group_aware) {
      const auto scale = download_as(q.scale.view);
      const auto zero = download_as(q.zero.view);
      auto reversed_scale = scale;
      auto reversed_zero = zero;
      for (std::int64_t i = 0; i < out * groups; ++i) {
        const std::int64_t from = i / groups * groups + groups - 1 - i % groups;
        reversed_scale[i] = scale[from];
        reversed_zero[i] = zero[from];
      }
      q.scale = upload_as(reversed_scale, out, groups);
      q.zero = upload_as(reversed_zero, out, groups);
      for (auto& g : q.group_of) g = static_cast<std::int32_t>(groups - 1 - g);
      for (auto& g : q.stored_group) g = static_cast<std::int32_t>(groups - 1 - g);
    }
    return q;
  }

  std::vector<float> dequantized(const QuantizedLinear& q) {
    const Array<float> w(q.code.view.rows, q.code.view.cols, stream);
    dequantize(q.code, q.scale, q.zero, upload_as(q.group_of, 1, q.code.view.cols), w.view, stream);
    return download_as(w.view);
  }

  static void expect_promised(const std::vector<NamedTensor>& promised,
                              const std::vector<PackedTensor>& packed) {
    ASSERT_EQ(promised.size(), packed.size());
    for (std::size_t i = 0; i < promised.size(); ++i) {
      EXPECT_EQ(promised[i].name, packed[i].info.name);
      EXPECT_EQ(promised[i].dtype, packed[i].info.dtype);
      EXPECT_EQ(promised[i].shape, packed[i].info.shape);
      std::size_t bytes = size_of(promised[i].dtype);
      for (const std::int64_t d : promised[i].shape) bytes *= static_cast<std::size_t>(d);
      EXPECT_EQ(packed[i].data.bytes(), bytes) << promised[i].name;
    }
  }

  // A packed tensor on the device.
  TensorArray on_device(const PackedTensor& packed) {
    TensorArray array(packed.info.dtype, packed.info.shape[0],
                      packed.info.shape.size() > 1 ? packed.info.shape[1] : 1, stream);
    copy_to_device(array.view.data, packed.data.data(), packed.data.bytes(), stream);
    return array;
  }

  static Matrix<const std::uint32_t> words(const TensorArray& x) {
    return x.view.as<std::uint32_t>();
  }
  static Matrix<const std::uint8_t> bytes(const TensorArray& x) {
    return {static_cast<const std::uint8_t*>(x.view.data), x.view.rows, x.view.cols};
  }
};

TEST_P(PackedFormatsTest, IntegersAreReadBackAsSolved) {
  const std::int64_t out = 45;
  const std::int64_t in = 96;
  const auto w = random_normal(out * in, 5, 0.05f);
  for (const int bits : {2, 3, 4, 8})
    for (const bool symmetric : {true, false})
      for (const std::int64_t group_size : {-1, 32})
        for (const bool reversed : {false, true}) {
          LinearSettings settings;
          settings.bits = bits;
          settings.symmetric = symmetric;
          settings.group_size = group_size;
          settings.act_group_aware = reversed;
          const QuantizedLinear q = solved(w, out, in, settings);
          for (const DType scale_dtype : {DType::f16, DType::f32}) {
            const auto packed = pack_ct_integer("m", q, scale_dtype, stream);
            expect_promised(
                ct_integer_tensors("m", out, in, bits, group_size, symmetric, scale_dtype), packed);
            ASSERT_EQ(packed.size(), symmetric ? 3u : 4u);
            EXPECT_EQ(packed[2].data.data()[0], out);
            EXPECT_EQ(packed[2].data.data()[8], in);
            const TensorArray weight_packed = on_device(packed[0]),
                              weight_scale = on_device(packed[1]);
            TensorArray zero_point;
            CtIntegerView view{words(weight_packed), weight_scale, {}};
            if (!symmetric) {
              zero_point = on_device(packed[3]);
              view.weight_zero_point = words(zero_point);
            }
            const Array<float> back(out, in, stream);
            unpack_ct_integer(view, bits, back.view, stream);
            ASSERT_EQ(download_as(back.view), dequantized(q));
          }
        }
}

TEST_P(PackedFormatsTest, ScalesAreStoredExactlyOrNotAtAll) {
  LinearSettings settings;
  settings.group_size = 32;
  const QuantizedLinear q = solved(random_normal(32 * 64, 6, 0.05f), 32, 64, settings);
  EXPECT_THROW(pack_ct_integer("model.layers.0.q_proj", q, DType::bf16, stream),
               std::invalid_argument);
  auto scale = download_as(q.scale.view);
  for (float& s : scale) s = to_float(to_bf16(s));
  copy_to_device(q.scale.view.data, scale.data(), scale.size() * sizeof(float), stream);
  EXPECT_NO_THROW(pack_ct_integer("m", q, DType::bf16, stream));
  scale[3] = std::numeric_limits<float>::quiet_NaN();
  copy_to_device(q.scale.view.data, scale.data(), scale.size() * sizeof(float), stream);
  EXPECT_THROW(pack_ct_integer("m", q, DType::f32, stream), std::runtime_error);
}

TEST_P(PackedFormatsTest, ColumnsOutOfGroupOrderAreRefused) {
  LinearSettings settings;
  settings.group_size = 32;
  QuantizedLinear q = solved(random_normal(32 * 64, 7, 0.05f), 32, 64, settings);
  std::swap(q.group_of[31], q.group_of[32]);
  for (const auto& pack :
       {std::function<void()>(
            [&] { pack_ct_integer("model.layers.0.q_proj", q, DType::f16, stream); }),
        std::function<void()>([&] { pack_awq_linear("model.layers.0.q_proj", q, stream); })})
    try {
      pack();
      FAIL() << "packed columns of a group that do not stand together";
    } catch (const std::invalid_argument& fault) {
      EXPECT_NE(std::string(fault.what()).find("model.layers.0.q_proj"), std::string::npos);
    }
}

TEST_P(PackedFormatsTest, AwqIsReadBackAsSolved) {
  for (const auto& [out, in, group_size] :
       {std::tuple<std::int64_t, std::int64_t, std::int64_t>{32, 64, 32},
        {96, 128, 64},
        {64, 40, -1}})
    for (const bool symmetric : {true, false})
      for (const bool reversed : {false, true}) {
        LinearSettings settings;
        settings.symmetric = symmetric;
        settings.group_size = group_size;
        settings.act_group_aware = reversed;
        const QuantizedLinear q = solved(random_normal(out * in, 8, 0.05f), out, in, settings);
        const auto packed = pack_awq_linear("m", q, stream);
        expect_promised(awq_tensors("m", out, in, group_size), packed);
        const TensorArray qweight = on_device(packed[0]), qzeros = on_device(packed[1]),
                          scales = on_device(packed[2]);
        const Array<float> back(out, in, stream);
        unpack_awq_linear({words(qweight), words(qzeros), scales}, back.view, stream);
        ASSERT_EQ(download_as(back.view), dequantized(q));
      }
  LinearSettings settings;
  settings.group_size = 32;
  EXPECT_THROW(pack_awq_linear("m", solved(random_normal(40 * 32, 1), 40, 32, settings), stream),
               std::invalid_argument);
  settings.bits = 8;
  EXPECT_THROW(pack_awq_linear("m", solved(random_normal(32 * 32, 1), 32, 32, settings), stream),
               std::invalid_argument);
}

TEST_P(PackedFormatsTest, FloatsAreReadBackAsQuantized) {
  const std::int64_t out = 130;
  const std::int64_t in = 160;
  const Array<float> w = upload_as(random_normal(out * in, 9, 0.05f), out, in);
  const Array<float> here(out, in, stream), back(out, in, stream);

  const Array<std::uint8_t> code(out, in, stream);
  const Array<float> row_scale(out, 1, stream);
  quantize_float8_rows(w.view, DType::bf16, code, row_scale, stream);
  dequantize_float8(code, row_scale, 1, in, here.view, stream);
  const auto rows = pack_ct_float8("m", code, row_scale, DType::bf16, stream);
  expect_promised(ct_float8_tensors("m", out, in, DType::bf16), rows);
  unpack_ct_float8(bytes(on_device(rows[0])), on_device(rows[1]), back.view, stream);
  EXPECT_EQ(download_as(back.view), download_as(here.view));
  EXPECT_THROW(pack_ct_float8("m", code, upload_as(std::vector<float>(out, 0.001f), out, 1),
                              DType::bf16, stream),
               std::invalid_argument);
  unpack_ct_float8(code, upload_as(std::vector<float>{2.0f}, 1, 1).view, back.view,
                   stream);  // one scale a tensor
  EXPECT_EQ(download_as(back.view).back(), 2.0f * e4m3_to_float(download_as(code.view).back()));

  const Array<float> block_scale(2, 2, stream);
  quantize_float8_blocks(w.view, code, block_scale, stream);
  dequantize_float8(code, block_scale, 128, 128, here.view, stream);
  const auto blocks = pack_fp8("m", code, block_scale, stream);
  expect_promised(fp8_tensors("m", out, in), blocks);
  EXPECT_EQ(blocks[1].info.name, "m.weight_scale_inv");
  unpack_fp8(bytes(on_device(blocks[0])), on_device(blocks[1]), back.view, stream);
  EXPECT_EQ(download_as(back.view), download_as(here.view));

  const Array<std::uint8_t> packed(out, in / 2, stream), nv_scale(out, in / 16, stream),
      mx_scale(out, in / 32, stream);
  quantize_nvfp4(w.view, 4000.0f, packed, nv_scale, stream);
  expect_promised(ct_nvfp4_tensors("m", out, in),
                  pack_ct_nvfp4("m", packed, nv_scale, 4000.0f, stream));
  quantize_mxfp4(w.view, packed, mx_scale, stream);
  expect_promised(ct_mxfp4_tensors("m", out, in), pack_ct_mxfp4("m", packed, mx_scale, stream));

  auto damaged = download_as(w.view);
  damaged[77] = std::numeric_limits<float>::quiet_NaN();
  const Array<float> bad = upload_as(damaged, out, in);
  quantize_float8_rows(bad.view, DType::bf16, code, row_scale, stream);
  EXPECT_THROW(pack_ct_float8("m", code, row_scale, DType::bf16, stream), std::runtime_error);
  quantize_float8_blocks(bad.view, code, block_scale, stream);
  EXPECT_THROW(pack_fp8("m", code, block_scale, stream), std::runtime_error);
  quantize_nvfp4(bad.view, 4000.0f, packed, nv_scale, stream);
  EXPECT_THROW(pack_ct_nvfp4("m", packed, nv_scale, 4000.0f, stream), std::runtime_error);
  quantize_mxfp4(bad.view, packed, mx_scale, stream);
  EXPECT_THROW(pack_ct_mxfp4("m", packed, mx_scale, stream), std::runtime_error);
}

INSTANTIATE_TEST_SUITE_P(Backends, PackedFormatsTest, testing::ValuesIn(backends()), backend_name);

TEST(PackedFormatsConfig, CompressedTensors) {
  CtConfig config;
  config.groups[0].settings.group_size = 128;
  EXPECT_EQ(ct_config_json(config), json::parse(R"({
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
    "kv_cache_scheme": null, "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null, "output_activations": null,
      "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 128, "dynamic": false}}}})"));

  config.ignore = {"lm_head", "re:.*mlp[.]gate$"};
  config.groups.push_back({{"re:.*down_proj$"}, {}});
  LinearSettings& down = config.groups[1].settings;
  down.bits = 8;
  down.group_size = -1;
  down.symmetric = false;
  down.desc_act = down.static_groups = true;
  const json mixed = ct_config_json(config);
  EXPECT_EQ(mixed["ignore"], json({"lm_head", "re:.*mlp[.]gate$"}));
  EXPECT_EQ(mixed["config_groups"]["group_1"]["targets"], json::array({"re:.*down_proj$"}));
  EXPECT_EQ(
      mixed["config_groups"]["group_1"]["weights"],
      json::parse(
          R"({"num_bits": 8, "type": "int", "symmetric": false, "strategy": "channel", "group_size": null, "dynamic": false,
                            "actorder": "static"})"));

  const auto weights_and_inputs = [](CtFormat format) {
    const json written = ct_config_json({format, {CtGroup{}}, {"lm_head"}});
    return json{written["format"], written["config_groups"]["group_0"]["weights"],
                written["config_groups"]["group_0"]["input_activations"]};
  };
  EXPECT_EQ(weights_and_inputs(CtFormat::float_quantized), json::parse(R"(["float-quantized",
    {"num_bits": 8, "type": "float", "symmetric": true, "strategy": "channel", "group_size": null, "dynamic": false},
    {"num_bits": 8, "type": "float", "symmetric": true, "strategy": "token", "group_size": null, "dynamic": true}])"));
  EXPECT_EQ(weights_and_inputs(CtFormat::nvfp4_pack_quantized),
            json::parse(R"(["nvfp4-pack-quantized",
    {"num_bits": 4, "type": "float", "symmetric": true, "strategy": "tensor_group", "group_size": 16, "dynamic": false,
     "scale_dtype": "torch.float8_e4m3fn"}, null])"));
  EXPECT_EQ(weights_and_inputs(CtFormat::mxfp4_pack_quantized),
            json::parse(R"(["mxfp4-pack-quantized",
    {"num_bits": 4, "type": "float", "symmetric": true, "strategy": "group", "group_size": 32, "dynamic": false,
     "scale_dtype": "torch.uint8"}, null])"));
}

TEST(PackedFormatsConfig, Fp8AndAwq) {
  EXPECT_EQ(fp8_config_json({"lm_head"}),
            json::parse(R"({"quant_method": "fp8", "activation_scheme": "dynamic",
    "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]})"));
  EXPECT_EQ(awq_config_json(128, {}),
            json::parse(R"({"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128,
    "zero_point": true, "sym": false, "modules_to_not_convert": null})"));
  const json skipping = awq_config_json(64, {"mlp.gate"});
  EXPECT_EQ(skipping["modules_to_not_convert"], json::array({"mlp.gate"}));
  EXPECT_EQ(skipping["dynamic"], json::parse(R"({"-:mlp.gate$": {}})"));
}

}  // namespace
}  // namespace qpipe
