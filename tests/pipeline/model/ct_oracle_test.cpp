// compressed-tensors and AWQ checkpoints that peers made of models/llama-mha: the same weights give
// the same bytes, and every linear is read back to the weights that tests/python/ct_dequantize.py
// (a transcription of the peers' loaders, judged by their logits) gives.
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "kernels/float4.h"
#include "kernels/float8.h"
#include "kernels/pack_rows.h"
#include "kernels/quantize_groups.h"
#include "pipeline/model/safetensors.h"
#include "stages/formats/awq_format.h"
#include "stages/formats/compressed_tensors_format.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

class CtOracleTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(oracles / "checkpoints/ct-rtn-w8"))
      GTEST_SKIP() << oracles << " is absent";
    original.emplace(oracles / "models/llama-mha/model.safetensors");
    for (const auto& [name, info] : original->tensors())
      if (name.ends_with("proj.weight"))
        modules.push_back(name.substr(0, name.size() - std::string(".weight").size()));
    ASSERT_EQ(modules.size(), 21u);
  }

  void open(const std::string& checkpoint) {
    peer.emplace(oracles / "checkpoints" / checkpoint / "model.safetensors");
  }

  TensorArray read(const SafetensorsFile& file, const std::string& name) {
    const TensorInfo& info = file.info(name);
    TensorArray array(info.dtype, info.rows(), info.cols(), stream);
    file.read(name, array.view.data);
    return array;
  }
  TensorArray weight(const std::string& module) { return read(*original, module + ".weight"); }
  TensorArray stored(const std::string& module, const std::string& part) {
    return read(*peer, module + "." + part);
  }
  static Matrix<const std::uint32_t> words(const TensorArray& x) {
    return x.view.as<std::uint32_t>();
  }
  static Matrix<const std::uint8_t> bytes(const TensorArray& x) {
    return {static_cast<const std::uint8_t*>(x.view.data), x.view.rows, x.view.cols};
  }

  // Name, dtype, shape and bytes of every tensor equal the peer's.
  void expect_stored(const std::vector<PackedTensor>& packed) {
    for (const PackedTensor& tensor : packed) {
      const TensorInfo& info = peer->info(tensor.info.name);
      EXPECT_EQ(info.dtype, tensor.info.dtype) << tensor.info.name;
      EXPECT_EQ(info.shape, tensor.info.shape) << tensor.info.name;
      std::vector<unsigned char> wanted(static_cast<std::size_t>(info.bytes()));
      peer->read(tensor.info.name, wanted.data());
      EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), tensor.data.begin(), tensor.data.end()))
          << tensor.info.name;
    }
  }

  // `unpack(module, w)` of every module against the golden CRC-32 of its float32 bytes.
  template <class Unpack>
  void expect_read_back(const std::string& checkpoint, Unpack unpack) {
    open(checkpoint);
    std::ifstream golden(tests_folder() / "golden/ct_dequantized.json");
    const auto wanted = nlohmann::json::parse(golden)[checkpoint];
    for (const std::string& module : modules) {
      const TensorInfo& shape = original->info(module + ".weight");
      const Array<float> w(shape.rows(), shape.cols(), stream);
      unpack(module, w.view);
      const auto crc = crc32(0, static_cast<const unsigned char*>(w.memory.data()),
                             static_cast<unsigned>(w.memory.bytes()));
      EXPECT_EQ(crc, wanted[module].get<unsigned long>()) << checkpoint << ", " << module;
    }
  }
  void expect_integers_read_back(const std::string& checkpoint, int bits, bool symmetric) {
    expect_read_back(checkpoint, [&](const std::string& module, Tensor w) {
      const TensorArray packed = stored(module, "weight_packed"),
                        scale = stored(module, "weight_scale");
      TensorArray zero;
      CtIntegerView view{words(packed), scale, {}};
      if (!symmetric) {
        zero = stored(module, "weight_zero_point");
        view.weight_zero_point = words(zero);
      }
      unpack_ct_integer(view, bits, w, stream);
    });
  }

  const std::filesystem::path oracles = shared_folder() / "oracles";
  Stream stream{Backend::cpu, 0};
  std::optional<SafetensorsFile> original;
  std::optional<SafetensorsFile> peer;
  std::vector<std::string> modules;
};

float widened(ConstTensor w, std::int64_t r, std::int64_t c) {
  return to_float(w.as<const bf16>()(r, c));
}

TEST_F(CtOracleTest, Float8GivesTheSameBytes) {
  open("ct-fp8-dynamic");
  for (const std::string& module : modules) {
    const TensorArray w = weight(module);
    const Array<std::uint8_t> code(w.view.rows, w.view.cols, stream);
    const Array<float> scale(w.view.rows, 1, stream);
    quantize_float8_rows(w, DType::f32, code, scale, stream);  // the peer ran the model in float32
    expect_stored(pack_ct_float8(module, code, scale, DType::f32, stream));
  }
}

TEST_F(CtOracleTest, Mxfp4GivesTheSameBytes) {
  open("ct-mxfp4a16");
  for (const std::string& module : modules) {
    const TensorArray w = weight(module);
    const Array<std::uint8_t> packed(w.view.rows, w.view.cols / 2, stream),
        scale(w.view.rows, w.view.cols / 32, stream);
    quantize_mxfp4(w, packed, scale, stream);
    expect_stored(pack_ct_mxfp4(module, packed, scale, stream));
  }
}

// Allowed differences: the peer computes 2688 / absmax and max|group| / 6 in the weights' bfloat16,
// we in float32. With its global scale, group scales may be one code apart where bfloat16 rounded
// across a boundary of e4m3, and there it must be what bfloat16 gives; every group with an equal
// scale has equal codes.
TEST_F(CtOracleTest, Nvfp4GivesTheSameBytesButForBfloat16Scales) {
  open("ct-nvfp4a16");
  int groups = 0;
  int different = 0;
  for (const std::string& module : modules) {
    const TensorArray w = weight(module);
    const float global = stored(module, "weight_global_scale").view.as<float>()(0, 0);
    const Array<std::uint8_t> packed(w.view.rows, w.view.cols / 2, stream),
        scale(w.view.rows, w.view.cols / 16, stream);
    quantize_nvfp4(w, global, packed, scale, stream);
    const TensorArray peer_scale = stored(module, "weight_scale"),
                      peer_packed = stored(module, "weight_packed");
    for (std::int64_t r = 0; r < w.view.rows; ++r)
      for (std::int64_t g = 0; g < scale.view.cols; ++g) {
        ++groups;
        if (scale.view(r, g) == bytes(peer_scale)(r, g)) {
          for (std::int64_t i = 8 * g; i < 8 * g + 8; ++i)
            ASSERT_EQ(packed.view(r, i), bytes(peer_packed)(r, i)) << module;
          continue;
        }
        ++different;
        float largest = 0.0f;
        for (std::int64_t c = 16 * g; c < 16 * g + 16; ++c)
          largest = std::max(largest, std::fabs(widened(w, r, c)));
        ASSERT_EQ(to_e4m3(global * to_float(to_bf16(largest / 6.0f))), bytes(peer_scale)(r, g))
            << module;
        ASSERT_LE(std::abs(int{scale.view(r, g)} - int{bytes(peer_scale)(r, g)}), 1);
      }
  }
  EXPECT_EQ(groups, 7680);
  EXPECT_EQ(different, 95);
}

TEST_F(CtOracleTest, Nvfp4GlobalScaleOfFusedLinears) {
  open("ct-nvfp4a16");
  const std::string layer = "model.layers.1.";
  for (const std::vector<std::string>& fused :
       {std::vector<std::string>{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
        {"mlp.gate_proj", "mlp.up_proj"},
        {"mlp.down_proj"}}) {
    const Array<float> largest(1, 1, stream);
    fill_zero(largest.view.data, sizeof(float), stream);
    for (const std::string& name : fused) accumulate_absmax(weight(layer + name), largest, stream);
    for (const std::string& name : fused) {
      const float theirs = stored(layer + name, "weight_global_scale").view.as<float>()(0, 0);
      // Theirs is a bfloat16 reciprocal times 2688 in bfloat16: two roundings of 2^-9.
      EXPECT_NEAR(nvfp4_global_scale(largest.view(0, 0)), theirs, theirs * 0x1p-8f) << name;
    }
  }
}

// The peer's scale is float32. With it, codes and words are the peer's bytes; find_grids' float16
// scale is that one, rounded.
TEST_F(CtOracleTest, RoundToNearestGivesTheSameBytes) {
  open("ct-rtn-w8");
  for (const std::string& module : modules) {
    const TensorArray narrow = weight(module);
    const std::int64_t out = narrow.view.rows;
    const std::int64_t in = narrow.view.cols;
    const Array<float> w(out, in, stream);
    for (std::int64_t i = 0; i < out * in; ++i)
      w.view(i / in, i % in) = widened(narrow, i / in, i % in);
    QuantizedLinear q;
    q.settings.bits = 8;
    q.settings.group_size = -1;
    q.code = Array<std::uint8_t>(out, in, stream);
    q.scale = Array<float>(out, 1, stream);
    q.zero = Array<std::uint8_t>(out, 1, stream);
    q.group_of.assign(static_cast<std::size_t>(in), 0);
    q.stored_group = {0};
    find_grids(w, in, {8, true, 0.0f}, q.scale, q.zero, stream);
    const TensorArray scale = stored(module, "weight_scale");
    const Matrix<float> theirs = scale.view.as<float>();
    for (std::int64_t r = 0; r < out; ++r) {
      ASSERT_EQ(q.scale.view(r, 0), to_float(to_f16(theirs(r, 0)))) << module;
      q.scale.view(r, 0) = theirs(r, 0);
    }
    round_to_grid(w, q.scale, q.zero, {q.group_of.data(), 1, in}, 8, q.code, stream);
    expect_stored(pack_ct_integer(module, q, DType::f32, stream));
  }
}

TEST_F(CtOracleTest, EveryCheckpointIsReadBack) {
  expect_integers_read_back("ct-gptq-w4-sym", 4, true);
  expect_integers_read_back("ct-gptq-w4-asym-static", 4, false);
  expect_integers_read_back("ct-awq-w4-asym", 4, false);
  expect_integers_read_back("ct-rtn-w8", 8, true);
  expect_read_back("ct-fp8-dynamic", [&](const std::string& module, Tensor w) {
    unpack_ct_float8(bytes(stored(module, "weight")), stored(module, "weight_scale"), w, stream);
  });
  // compressed-tensors gives FP4 weights in bfloat16.
  const auto in_bfloat16 = [&](Tensor w, const auto& dequantized) {
    const TensorArray narrow(DType::bf16, w.rows, w.cols, stream);
    dequantized(narrow.view);
    for (std::int64_t i = 0; i < w.size(); ++i)
      w.as<float>().data[i] = to_float(narrow.view.as<bf16>().data[i]);
  };
  expect_read_back("ct-nvfp4a16", [&](const std::string& module, Tensor w) {
    const float global = stored(module, "weight_global_scale").view.as<float>()(0, 0);
    in_bfloat16(w, [&](Tensor narrow) {
      dequantize_nvfp4(bytes(stored(module, "weight_packed")),
                       bytes(stored(module, "weight_scale")), global, narrow, stream);
    });
  });
  expect_read_back("ct-mxfp4a16", [&](const std::string& module, Tensor w) {
    in_bfloat16(w, [&](Tensor narrow) {
      dequantize_mxfp4(bytes(stored(module, "weight_packed")),
                       bytes(stored(module, "weight_scale")), narrow, stream);
    });
  });
  expect_read_back("awq-gemm-g32", [&](const std::string& module, Tensor w) {
    const TensorArray qweight = stored(module, "qweight"), qzeros = stored(module, "qzeros"),
                      scales = stored(module, "scales");
    unpack_awq_linear({words(qweight), words(qzeros), scales}, w, stream);
  });
}

// Unpacking a peer's integers and packing them again gives its bytes.
TEST_F(CtOracleTest, AwqWordsArePackedAgain) {
  open("awq-gemm-g32");
  for (const std::string& module : modules) {
    const TensorArray qweight = stored(module, "qweight"), qzeros = stored(module, "qzeros"),
                      scales = stored(module, "scales");
    const std::int64_t in = qweight.view.rows;
    const std::int64_t out = 8 * qweight.view.cols;
    const std::int64_t groups = scales.view.rows;
    QuantizedLinear q;
    q.settings.group_size = in / groups;
    q.code = Array<std::uint8_t>(out, in, stream);
    q.zero = Array<std::uint8_t>(out, groups, stream);
    q.scale = Array<float>(out, groups, stream);
    unpack_awq(words(qweight), q.code, stream);
    unpack_awq(words(qzeros), q.zero, stream);
    for (std::int64_t g = 0; g < groups; ++g) {
      q.stored_group.push_back(static_cast<std::int32_t>(g));
      for (std::int64_t n = 0; n < out; ++n)
        q.scale.view(n, g) = to_float(scales.view.as<f16>()(g, n));
    }
    for (std::int64_t k = 0; k < in; ++k)
      q.group_of.push_back(static_cast<std::int32_t>(k * groups / in));
    expect_stored(pack_awq_linear(module, q, stream));
  }
}

}  // namespace
}  // namespace qpipe
