// The bytes of every tensor that bitsandbytes' CPU build and transformers wrote for
// oracles/models/llama-mha, and its weights read back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/int8_rows.h"
#include "pipeline/model/safetensors.h"
#include "stages/formats/bnb_format.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

const fs::path oracles = shared_folder() / "oracles";

std::vector<unsigned char> bytes_of(const SafetensorsFile& file, const std::string& name) {
  std::vector<unsigned char> bytes(static_cast<std::size_t>(file.info(name).bytes()));
  file.read(name, bytes.data());
  return bytes;
}

std::string text_of(const std::vector<unsigned char>& bytes) {
  return {bytes.begin(), bytes.end()};
}

class BnbOracleTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!fs::exists(oracles / "checkpoints" / GetParam()))
      GTEST_SKIP() << "no oracles at " << oracles;
  }

  SafetensorsFile original() const {
    return SafetensorsFile(oracles / "models" / "llama-mha" / "model.safetensors");
  }
  SafetensorsFile quantized() const {
    return SafetensorsFile(oracles / "checkpoints" / GetParam() / "model.safetensors");
  }
  nlohmann::json config() const {
    std::ifstream text(oracles / "checkpoints" / GetParam() / "config.json");
    return nlohmann::json::parse(text).at("quantization_config");
  }

  static std::vector<std::string> modules(const SafetensorsFile& file) {
    const std::string suffix = "_proj.weight";
    std::vector<std::string> names;
    for (const auto& [name, info] : file.tensors())
      if (name.ends_with(suffix))
        names.push_back(name.substr(0, name.size() - std::strlen(".weight")));
    return names;
  }

  // Same names, types, shapes and bytes; quant_state may end in spaces.
  static void expect_equal(const std::vector<PackedTensor>& ours, const std::string& module,
                           const SafetensorsFile& theirs) {
    std::size_t count = 0;
    for (const auto& [name, info] : theirs.tensors())
      count += name.starts_with(module + ".") ? 1 : 0;
    EXPECT_EQ(ours.size(), count) << module;
    for (const PackedTensor& tensor : ours) {
      const std::string& name = tensor.info.name;
      ASSERT_TRUE(theirs.contains(name)) << name;
      EXPECT_EQ(tensor.info.dtype, theirs.info(name).dtype) << name;
      const auto expected = bytes_of(theirs, name);
      const std::vector<unsigned char> written(tensor.data.begin(), tensor.data.end());
      if (name.find("quant_state") != std::string::npos) {
        std::string text = text_of(written);
        EXPECT_EQ(static_cast<std::int64_t>(text.size()), tensor.info.shape.at(0));
        if (text.find("nested_offset") != std::string::npos)
          text.erase(text.find_last_not_of(' ') + 1);
        EXPECT_EQ(text, text_of(expected)) << name;
      } else {
        EXPECT_EQ(tensor.info.shape, theirs.info(name).shape) << name;
        EXPECT_TRUE(written == expected) << name;
      }
    }
  }

  Stream stream{Backend::cpu, 0};
};

class BnbFourBitOracleTest : public BnbOracleTest {};

TEST_P(BnbFourBitOracleTest, EqualBytes) {
  const auto source = original();
  const auto theirs = quantized();
  const auto json = config();
  // The peer had read the bf16 weights as float32.
  const FourBitSettings settings{
      json["bnb_4bit_quant_type"] == "nf4" ? FourBitKind::nf4 : FourBitKind::fp4, 64,
      json["bnb_4bit_use_double_quant"].get<bool>(),
      json["bnb_4bit_quant_storage"] == "uint8" ? DType::u8 : DType::bf16, DType::f32};
  ASSERT_EQ(modules(source).size(), 21u);
  for (const std::string& module : modules(source)) {
    const TensorInfo& info = source.info(module + ".weight");
    const auto weight = bytes_of(source, module + ".weight");
    const std::int64_t elements = info.rows() * info.cols();
    const Array<float> absmax(1, block_count(elements, 64), stream);
    const Array<std::uint8_t> packed(1, elements / 2, stream);
    quantize_blocks(ConstTensor(weight.data(), info.dtype, info.rows(), info.cols()), settings.kind,
                    64, absmax, packed, stream);
    expect_equal(pack_four_bit(module, info.rows(), info.cols(), settings, packed, absmax, stream),
                 module, theirs);
  }
}

TEST_P(BnbFourBitOracleTest, ReadsThePeersTensors) {
  const auto source = original();
  const auto theirs = quantized();
  const std::string kind = config()["bnb_4bit_quant_type"];
  const FourBitTable table = four_bit_table(kind == "nf4" ? FourBitKind::nf4 : FourBitKind::fp4);
  double widest = 0.0;  // between neighbouring values
  for (std::size_t i = 0; i < 15; ++i)
    widest = std::max(
        widest, double{table.value[table.ordered[i + 1]]} - double{table.value[table.ordered[i]]});
  for (const std::string& module : modules(source)) {
    const std::string weight = module + ".weight";
    const QuantState state =
        parse_quant_state(text_of(bytes_of(theirs, weight + ".quant_state.bitsandbytes__" + kind)));
    const auto packed = bytes_of(theirs, weight);
    const auto absmax = bytes_of(theirs, weight + ".absmax");
    const auto blocks = theirs.info(weight + ".absmax").shape.at(0);
    FourBitView view{{packed.data(), 1, static_cast<std::int64_t>(packed.size())},
                     ConstTensor(absmax.data(), theirs.info(weight + ".absmax").dtype, 1, blocks),
                     {},
                     {}};
    std::vector<unsigned char> nested_absmax;
    std::vector<unsigned char> map;
    if (state.nested) {
      nested_absmax = bytes_of(theirs, weight + ".nested_absmax");
      map = bytes_of(theirs, weight + ".nested_quant_map");
      view.nested_absmax = {reinterpret_cast<const float*>(nested_absmax.data()), 1,
                            static_cast<std::int64_t>(nested_absmax.size() / 4)};
      view.nested_quant_map = {reinterpret_cast<const float*>(map.data()), 1, 256};
    }
    const Array<float> read(state.out_features, state.in_features, stream);
    unpack_four_bit(view, state, read.view, stream);
    const auto exact = bytes_of(source, weight);
    ASSERT_EQ(exact.size(), static_cast<std::size_t>(read.view.size()) * 2);
    std::vector<float> w(exact.size() / 2);
    for (std::size_t i = 0; i < w.size(); ++i) {
      bf16 value{};
      std::memcpy(&value, exact.data() + 2 * i, 2);
      w[i] = to_float(value);
    }
    const auto magnitude = [](float x, float y) { return std::fabs(x) < std::fabs(y); };
    const double largest = std::fabs(*std::max_element(w.begin(), w.end(), magnitude));
    for (std::size_t begin = 0; begin < w.size(); begin += 64) {
      const auto block = w.begin() + static_cast<std::ptrdiff_t>(begin);
      const double block_largest = std::fabs(*std::max_element(block, block + 64, magnitude));
      // Half the widest step, rounding; the widest step of the 8-bit map is 0.0142 of the largest
      // distance from the mean.
      const double tolerance =
          block_largest * (widest / 2 + 1e-6) + (state.nested ? 0.0071 * largest : 0.0);
      for (std::size_t i = begin; i < begin + 64; ++i)
        ASSERT_NEAR(read.view.data[i], w[i], tolerance) << weight << " element " << i;
    }
  }
}

TEST_P(BnbFourBitOracleTest, EqualConfig) {
  const auto json = config();
  FourBitSettings settings;
  settings.kind = json["bnb_4bit_quant_type"] == "nf4" ? FourBitKind::nf4 : FourBitKind::fp4;
  settings.double_quant = json["bnb_4bit_use_double_quant"].get<bool>();
  settings.storage = json["bnb_4bit_quant_storage"] == "uint8" ? DType::u8 : DType::bf16;
  EXPECT_EQ(
      bnb_config_json(
          {settings, json["bnb_4bit_compute_dtype"] == "float32" ? DType::f32 : DType::bf16, {}}),
      json);
}

INSTANTIATE_TEST_SUITE_P(Oracles, BnbFourBitOracleTest,
                         testing::Values("bnb-nf4", "bnb-nf4-double", "bnb-fp4",
                                         "bnb-nf4-bf16storage"),
                         [](const auto& instance) {
                           std::string name = instance.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

class BnbInt8OracleTest : public BnbOracleTest {};

TEST_P(BnbInt8OracleTest, EqualBytesAndConfig) {
  const auto source = original();
  const auto theirs = quantized();
  for (const std::string& module : modules(source)) {
    const TensorInfo& info = source.info(module + ".weight");
    const auto weight = bytes_of(source, module + ".weight");
    const Array<float> scb(1, info.rows(), stream);
    const Array<std::int8_t> code(info.rows(), info.cols(), stream);
    quantize_int8_rows(ConstTensor(weight.data(), info.dtype, info.rows(), info.cols()), scb, code,
                       stream);
    expect_equal(pack_int8(module, code, scb, stream), module, theirs);
  }
  EXPECT_EQ(bnb_config_json({}), config());
}

INSTANTIATE_TEST_SUITE_P(Oracles, BnbInt8OracleTest, testing::Values("bnb-int8"),
                         [](const auto&) { return "int8"; });

}  // namespace
}  // namespace qpipe
