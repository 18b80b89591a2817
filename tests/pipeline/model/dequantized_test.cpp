// Quantized checkpoints as sources: what is presented is what the packed tensors stand for.
#include "pipeline/model/dequantized.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "pipeline/model/read_back.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

const fs::path oracles = shared_folder() / "oracles";

double e4m3(std::uint8_t code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 128 ? -size : size;
}

std::vector<bf16> weight_of(const Checkpoint& checkpoint, const std::string& name) {
  std::vector<bf16> values(static_cast<std::size_t>(checkpoint.info(name).bytes()) / 2);
  checkpoint.read(name, values.data());
  return values;
}

// In pieces that begin and end inside of rows and blocks.
std::vector<bf16> weight_in_pieces(const Checkpoint& checkpoint, const std::string& name) {
  std::vector<bf16> values(static_cast<std::size_t>(checkpoint.info(name).bytes()) / 2);
  constexpr std::size_t piece = 4099;
  for (std::size_t i = 0; i < values.size(); i += piece)
    checkpoint.read(name, static_cast<std::int64_t>(2 * i),
                    static_cast<std::int64_t>(2 * std::min(piece, values.size() - i)),
                    values.data() + i);
  return values;
}

bool equal(const std::vector<bf16>& a, const std::vector<bf16>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), 2 * a.size()) == 0;
}

// A checkpoint of one FP8 linear with a scale of some shape and type.
class Fp8 : public testing::Test {
 protected:
  static constexpr std::int64_t out = 200;  // no multiples of 128
  static constexpr std::int64_t in = 300;

  void SetUp() override {
    folder = fs::temp_directory_path() / ("qpipe-fp8-" + std::to_string(std::random_device{}()));
    fs::create_directories(folder);
    std::mt19937 random(3);
    for (auto& code : codes) {
      code = static_cast<std::uint8_t>(random() & 255);
      if ((code & 127) == 127) code = 0;  // NaN
    }
  }
  void TearDown() override { fs::remove_all(folder); }

  Checkpoint written(const TensorInfo& scale, const void* values, const nlohmann::json& block) {
    const nlohmann::json config{
        {"model_type", "llama"},
        {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", block}}}};
    std::ofstream(folder / "config.json") << config.dump();
    const std::vector<TensorInfo> tensors{{"m.weight", DType::f8_e4m3, {out, in}}, scale};
    SafetensorsWriter writer(folder / "model.safetensors", tensors);
    writer.write("m.weight", codes.data());
    writer.write(scale.name, values);
    writer.finish();
    return Checkpoint(folder);
  }

  void expect_weight(const Checkpoint& checkpoint,
                     const std::function<double(std::int64_t, std::int64_t)>& scale) {
    EXPECT_FALSE(checkpoint.config().contains("quantization_config"));
    EXPECT_EQ(checkpoint.names(), std::vector<std::string>{"m.weight"});
    EXPECT_EQ(checkpoint.info("m.weight").dtype, DType::bf16);
    const std::vector<bf16> weight = weight_of(checkpoint, "m.weight");
    for (std::int64_t r = 0; r < out; ++r)
      for (std::int64_t c = 0; c < in; ++c) {
        const auto i = static_cast<std::size_t>(r * in + c);
        const double exact = e4m3(codes[i]) * scale(r, c);
        ASSERT_NEAR(to_float(weight[i]), exact, std::fabs(exact) / 256.0) << r << ", " << c;
      }
    EXPECT_TRUE(equal(weight, weight_in_pieces(checkpoint, "m.weight")));
  }

  fs::path folder;
  std::vector<std::uint8_t> codes = std::vector<std::uint8_t>(out * in);
};

TEST_F(Fp8, BlocksOf128WhoseLastAreSmaller) {
  const std::vector<float> scales{0.5f, 0.01f, 3.0f, 0.25f, 7.0f, 0.125f};
  Checkpoint checkpoint =
      written({"m.weight_scale_inv", DType::f32, {2, 3}}, scales.data(), {128, 128});
  present_dequantized(checkpoint);
  expect_weight(checkpoint, [&](auto r, auto c) {
    return double{scales[static_cast<std::size_t>(r / 128 * 3 + c / 128)]};
  });
  EXPECT_EQ(checkpoint.dequantized_from(), "fp8");
}

TEST_F(Fp8, PowersOfTwoAsScales) {
  const std::vector<std::uint8_t> scales{127, 126, 130, 120, 127, 128};
  Checkpoint checkpoint =
      written({"m.weight_scale_inv", DType::f8_e8m0, {2, 3}}, scales.data(), {128, 128});
  present_dequantized(checkpoint);
  expect_weight(checkpoint, [&](auto r, auto c) {
    return std::ldexp(1.0, scales[static_cast<std::size_t>(r / 128 * 3 + c / 128)] - 127);
  });
}

TEST_F(Fp8, OneScaleForTheTensor) {
  const float scale = 0.37f;
  Checkpoint checkpoint = written({"m.weight_scale_inv", DType::f32, {}}, &scale, nullptr);
  present_dequantized(checkpoint);
  expect_weight(checkpoint, [&](auto, auto) { return double{scale}; });
}

std::string fault_of(Checkpoint checkpoint) {
  try {
    present_dequantized(checkpoint);
  } catch (const UserError& error) {
    EXPECT_EQ(error.code, ExitCode::data);
    return error.what();
  }
  return {};
}

TEST_F(Fp8, FaultsNameTheTensor) {
  const std::vector<float> scales{0.5f,  0.01f, std::numeric_limits<float>::infinity(),
                                  0.25f, 7.0f,  0.125f};
  EXPECT_NE(fault_of(written({"m.weight_scale_inv", DType::f32, {2, 3}}, scales.data(), {128, 128}))
                .find("m.weight_scale_inv"),
            std::string::npos);
  EXPECT_NE(fault_of(written({"m.weight_scale_inv", DType::f32, {3, 2}}, scales.data(), {128, 128}))
                .find("'m.weight_scale_inv' has shape [3, 2]"),
            std::string::npos);
  EXPECT_NE(fault_of(written({"n.weight_scale_inv", DType::f32, {2, 3}}, scales.data(), {128, 128}))
                .find("tensor 'm.weight_scale_inv' is missing"),
            std::string::npos);
}

// The peers' checkpoints: the same as read_back of the whole linear, which their own logits check.
TEST(Dequantized, PeersCheckpointsGiveWhatReadBackGives) {
  if (!fs::exists(oracles)) GTEST_SKIP() << "no oracles at " << oracles;
  Stream host(Backend::cpu, 0);
  for (const char* name : {"ct-awq-w4-asym", "ct-fp8-dynamic", "ct-gptq-w4-sym", "ct-mxfp4a16",
                           "ct-nvfp4a16", "ct-rtn-w8"}) {
    const Checkpoint stored(oracles / "checkpoints" / name);
    const StoredFormat format = read_stored_format(stored.config(), name);
    Checkpoint presented(oracles / "checkpoints" / name);
    present_dequantized(presented);
    int linears = 0;
    for (const std::string& tensor : presented.names()) {
      const std::string module = tensor.substr(0, tensor.rfind('.'));
      if (!tensor.ends_with(".weight") || !is_packed(stored, module)) continue;
      const TensorInfo& info = presented.info(tensor);
      std::vector<std::vector<unsigned char>> memory;
      PackedParts parts;
      for (const std::string& part : stored.names_of(module)) {
        memory.emplace_back(static_cast<std::size_t>(stored.info(part).bytes()));
        stored.read(part, memory.back().data());
        parts[part.substr(module.size())] = view_of(stored.info(part), memory.back().data());
      }
      std::vector<bf16> weight(static_cast<std::size_t>(info.rows() * info.cols()));
      read_back(format, module, parts, Tensor(weight.data(), DType::bf16, info.rows(), info.cols()),
                host);
      EXPECT_TRUE(equal(weight_of(presented, tensor), weight)) << name << ": " << tensor;
      EXPECT_TRUE(equal(weight_in_pieces(presented, tensor), weight)) << name << ": " << tensor;
      ++linears;
    }
    EXPECT_EQ(linears, 21) << name;
  }
}

TEST(Dequantized, WhatCannotBeASourceIsRefused) {
  if (!fs::exists(oracles)) GTEST_SKIP() << "no oracles at " << oracles;
  for (const char* name : {"gptq-sym4-g32", "awq-gemm-g32", "bnb-nf4"})
    EXPECT_NE(fault_of(Checkpoint(oracles / "checkpoints" / name)).find("give model.path"),
              std::string::npos)
        << name;
}

}  // namespace
}  // namespace qpipe
