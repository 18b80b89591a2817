// Stacks of experts presented as the linears they are: each element against where the layout has
// it.
#include "pipeline/model/fused_experts.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "pipeline/model/checkpoint.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t experts = 3;
constexpr std::int64_t hidden = 8;
constexpr std::int64_t ffn = 5;

class Stacks : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::temp_directory_path() / ("qpipe-stacks-" + std::to_string(std::random_device{}()));
    fs::create_directories(folder);
  }
  void TearDown() override { fs::remove_all(folder); }

  // A tensor whose elements are their own indices: int16 holds them exactly.
  void write(const std::string& family, const std::vector<TensorInfo>& tensors) {
    nlohmann::json config{{"model_type", family}, {"hidden_size", hidden}};
    std::ofstream(folder / "config.json") << config.dump();
    SafetensorsWriter writer(folder / "model.safetensors", tensors);
    for (const TensorInfo& info : tensors) {
      const std::size_t size = size_of(info.dtype);
      const auto count = static_cast<std::size_t>(info.bytes()) / size;
      std::vector<std::int16_t> values(count);
      std::vector<std::uint8_t> bytes(count);
      for (std::size_t i = 0; i < count; ++i) {
        values[i] = static_cast<std::int16_t>(i);
        bytes[i] = static_cast<std::uint8_t>(i % 251);
      }
      writer.write(info.name, size == 2 ? static_cast<const void*>(values.data())
                                        : static_cast<const void*>(bytes.data()));
    }
    writer.finish();
  }

  // Each element by its own index in the stack, read whole and in pieces of three elements.
  static void expect_elements(const Checkpoint& checkpoint, const std::string& name,
                              const std::vector<std::int64_t>& shape,
                              const std::function<std::int64_t(std::int64_t, std::int64_t)>& at) {
    const TensorInfo& info = checkpoint.info(name);
    ASSERT_EQ(info.shape, shape) << name;
    std::vector<std::int16_t> values(static_cast<std::size_t>(info.bytes()) / 2);
    checkpoint.read(name, values.data());
    std::vector<std::int16_t> pieces(values.size());
    for (std::size_t i = 0; i < pieces.size(); i += 3)
      checkpoint.read(name, static_cast<std::int64_t>(2 * i),
                      static_cast<std::int64_t>(2 * std::min<std::size_t>(3, pieces.size() - i)),
                      pieces.data() + i);
    EXPECT_EQ(values, pieces) << name;
    for (std::int64_t r = 0; r < info.rows(); ++r)
      for (std::int64_t c = 0; c < info.cols(); ++c)
        EXPECT_EQ(values[static_cast<std::size_t>(r * info.cols() + c)], at(r, c))
            << name << " " << r << ", " << c;
  }

  fs::path folder;
};

TEST_F(Stacks, OutputFirst) {
  write("qwen3_5_moe_text",
        {{"model.layers.0.mlp.experts.gate_up_proj", DType::bf16, {experts, 2 * ffn, hidden}},
         {"model.layers.0.mlp.experts.down_proj", DType::bf16, {experts, hidden, ffn}}});
  const Checkpoint checkpoint(folder);
  EXPECT_EQ(checkpoint.names().size(), 9u);  // the stacks are gone
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::string expert = "model.layers.0.mlp.experts." + std::to_string(e);
    expect_elements(checkpoint, expert + ".gate_proj.weight", {ffn, hidden},
                    [&](auto r, auto c) { return (e * 2 * ffn + r) * hidden + c; });
    expect_elements(checkpoint, expert + ".up_proj.weight", {ffn, hidden},
                    [&](auto r, auto c) { return (e * 2 * ffn + ffn + r) * hidden + c; });
    expect_elements(checkpoint, expert + ".down_proj.weight", {hidden, ffn},
                    [&](auto r, auto c) { return (e * hidden + r) * ffn + c; });
    EXPECT_FALSE(checkpoint.lies_transposed(expert + ".up_proj.weight"));
  }
}

TEST_F(Stacks, InputFirst) {
  write("llama4_text",
        {{"layers.1.feed_forward.experts.gate_up_proj", DType::bf16, {experts, hidden, 2 * ffn}},
         {"layers.1.feed_forward.experts.down_proj", DType::bf16, {experts, ffn, hidden}}});
  const Checkpoint checkpoint(folder);
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::string expert = "layers.1.feed_forward.experts." + std::to_string(e);
    expect_elements(checkpoint, expert + ".gate_proj.weight", {hidden, ffn},
                    [&](auto r, auto c) { return (e * hidden + r) * 2 * ffn + c; });
    expect_elements(checkpoint, expert + ".up_proj.weight", {hidden, ffn},
                    [&](auto r, auto c) { return (e * hidden + r) * 2 * ffn + ffn + c; });
    expect_elements(checkpoint, expert + ".down_proj.weight", {ffn, hidden},
                    [&](auto r, auto c) { return (e * ffn + r) * hidden + c; });
    EXPECT_TRUE(checkpoint.lies_transposed(expert + ".up_proj.weight"));
  }
}

TEST_F(Stacks, GateAndUpTakeTurnsInGptOss) {
  write("gpt_oss", {{"l.mlp.experts.gate_up_proj", DType::bf16, {experts, hidden, 2 * ffn}},
                    {"l.mlp.experts.gate_up_proj_bias", DType::bf16, {experts, 2 * ffn}},
                    {"l.mlp.experts.down_proj_bias", DType::bf16, {experts, hidden}}});
  const Checkpoint checkpoint(folder);
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::string expert = "l.mlp.experts." + std::to_string(e);
    expect_elements(checkpoint, expert + ".gate_proj.weight", {hidden, ffn},
                    [&](auto r, auto c) { return (e * hidden + r) * 2 * ffn + 2 * c; });
    expect_elements(checkpoint, expert + ".up_proj.weight", {hidden, ffn},
                    [&](auto r, auto c) { return (e * hidden + r) * 2 * ffn + 2 * c + 1; });
    expect_elements(checkpoint, expert + ".up_proj.bias", {ffn},
                    [&](auto, auto c) { return e * 2 * ffn + 2 * c + 1; });
    expect_elements(checkpoint, expert + ".down_proj.bias", {hidden},
                    [&](auto, auto c) { return e * hidden + c; });
  }
}

TEST_F(Stacks, ThreeStacksAndGranitesNames) {
  write("step3p5",
        {{"l.moe.gate_proj.weight", DType::bf16, {experts, ffn, hidden}},
         {"l.moe.down_proj.weight", DType::bf16, {experts, hidden, ffn}},
         {"m.block_sparse_moe.input_linear.weight", DType::bf16, {experts, 2 * ffn, hidden}},
         {"m.shared_mlp.input_linear.weight", DType::bf16, {2 * ffn, hidden}}});
  const Checkpoint checkpoint(folder);
  expect_elements(checkpoint, "l.moe.experts.2.gate_proj.weight", {ffn, hidden},
                  [&](auto r, auto c) { return (2 * ffn + r) * hidden + c; });
  expect_elements(checkpoint, "l.moe.experts.1.down_proj.weight", {hidden, ffn},
                  [&](auto r, auto c) { return (hidden + r) * ffn + c; });
  expect_elements(checkpoint, "m.block_sparse_moe.experts.1.up_proj.weight", {ffn, hidden},
                  [&](auto r, auto c) { return (2 * ffn + ffn + r) * hidden + c; });
  EXPECT_TRUE(checkpoint.contains("m.shared_mlp.input_linear.weight"));
}

TEST_F(Stacks, Mxfp4BlocksTakeTurnsByRows) {
  constexpr std::int64_t blocks = 2;
  write("gpt_oss", {{"l.experts.gate_up_proj_blocks", DType::u8, {experts, 2 * ffn, blocks, 16}},
                    {"l.experts.gate_up_proj_scales", DType::u8, {experts, 2 * ffn, blocks}}});
  const Checkpoint checkpoint(folder);
  const std::string name = "l.experts.1.up_proj.weight_packed";
  ASSERT_EQ(checkpoint.info(name).shape, (std::vector<std::int64_t>{ffn, 16 * blocks}));
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(ffn * 16 * blocks));
  checkpoint.read(name, packed.data());
  for (std::int64_t r = 0; r < ffn; ++r)
    for (std::int64_t c = 0; c < 16 * blocks; ++c)
      EXPECT_EQ(packed[static_cast<std::size_t>(r * 16 * blocks + c)],
                ((2 * ffn + 2 * r + 1) * 16 * blocks + c) % 251);
  EXPECT_EQ(checkpoint.info("l.experts.1.up_proj.weight_scale").shape,
            (std::vector<std::int64_t>{ffn, blocks}));
}

TEST_F(Stacks, ShapesThatCannotBeAreToldWithTheStacksName) {
  write("qwen3_5_moe_text",
        {{"layers.0.mlp.experts.gate_up_proj", DType::bf16, {experts, 2 * ffn, hidden + 1}}});
  const Checkpoint checkpoint(folder);
  try {
    static_cast<void>(checkpoint.info("layers.0.mlp.experts.0.gate_proj.weight"));
    FAIL();
  } catch (const UserError& error) {
    EXPECT_EQ(error.code, ExitCode::data);
    EXPECT_NE(std::string(error.what()).find("experts.gate_up_proj' has shape [3, 10, 9]"),
              std::string::npos)
        << error.what();
  }
}

TEST_F(Stacks, ScalesThatAreMissingOrOfAnotherShapeAreToldWithTheStacksName) {
  const TensorInfo blocks{"l.experts.down_proj_blocks", DType::u8, {experts, hidden, 2, 16}};
  const TensorInfo other{"l.experts.down_proj_scales", DType::u8, {experts, hidden, 3}};
  for (const bool missing : {true, false}) {
    write("gpt_oss", missing ? std::vector<TensorInfo>{blocks} : std::vector{blocks, other});
    const auto fault = Checkpoint(folder).fault_of("l.experts.0.down_proj.weight_scale");
    ASSERT_TRUE(fault.has_value());
    EXPECT_EQ(fault->code, ExitCode::data);
    for (const char* part : {"'l.experts.down_proj_scales'", "'l.experts.down_proj_blocks'",
                             missing ? "is missing" : "has shape [3, 8, 3]"})
      EXPECT_NE(std::string(fault->what()).find(part), std::string::npos) << fault->what();
  }
}

}  // namespace
}  // namespace qpipe
