// Tensors that experts share: whole in the output where none of their linears is quantized.
#include "pipeline/plan/whole_stacks.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <set>

#include "pipeline/model/checkpoint.h"
#include "tests/pipeline/model/golden_models.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;
using Shape = std::vector<std::int64_t>;
using Names = std::set<std::string>;

// A checkpoint of zeros as config.json makes it, its experts in stacks.
class WholeStacks : public testing::Test {
 protected:
  WholeStacks()
      : folder(fs::temp_directory_path() / ("qpipe_whole_stacks_" + std::to_string(getpid()))) {
    options.quantize.group_size = 32;
  }
  ~WholeStacks() override { fs::remove_all(folder); }

  void write(const std::string& model, const std::map<std::string, Shape>& stacks) {
    const Json config = config_of(model);
    std::map<std::string, Shape> shapes = stacks;
    for (const TensorInfo& info :
         expected_tensors(read_architecture(config, "config.json"), DType::bf16))
      if (info.name.find("experts.") == std::string::npos) shapes[info.name] = info.shape;
    fs::create_directories(folder);
    std::ofstream(folder / "config.json") << config.dump();
    std::vector<TensorInfo> infos;
    for (const auto& [name, shape] : shapes) infos.push_back({name, DType::bf16, shape});
    SafetensorsWriter writer(folder / "model.safetensors", infos);
    for (const TensorInfo& info : infos)
      writer.write(info.name,
                   std::vector<unsigned char>(static_cast<std::size_t>(info.bytes())).data());
    writer.finish();
  }

  void granite() {
    std::map<std::string, Shape> stacks = {
        {"mtp.0.block_sparse_moe.input_linear.weight", {4, 64, 64}}};
    for (int layer = 0; layer < 3; ++layer) {
      const std::string moe = prefix(layer) + "block_sparse_moe.";
      stacks[moe + "input_linear.weight"] = {4, 64, 64};
      stacks[moe + "output_linear.weight"] = {4, 64, 32};
    }
    write("granitemoe", stacks);
  }

  void llama4() {
    const std::string experts = prefix(1) + "feed_forward.experts.";
    write("llama4-text",
          {{experts + "gate_up_proj", {4, 64, 64}}, {experts + "down_proj", {4, 32, 64}}});
  }

  static std::string prefix(int layer) { return "model.layers." + std::to_string(layer) + "."; }

  void skip(const std::string& match) {
    options.quantize.overrides.push_back({match, true, 0, 0, ""});
  }

  QuantizePlan plan() const {
    const Checkpoint checkpoint(folder);
    return plan_quantization(options, read_architecture(checkpoint), checkpoint);
  }

  static Names names_of(const std::vector<TensorInfo>& tensors) {
    Names names;
    for (const TensorInfo& tensor : tensors) EXPECT_TRUE(names.insert(tensor.name).second);
    return names;
  }

  Names output() const { return names_of(plan().tensors); }

  std::string fault() const {
    try {
      plan();
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::config);
      return error.what();
    }
    return "no fault";
  }

  fs::path folder;
  Options options;
};

TEST_F(WholeStacks, WhereAllExpertsAreSkipped) {
  granite();
  skip("experts");
  const QuantizePlan planned = plan();
  for (const std::vector<TensorInfo>* tensors : {&planned.tensors, &planned.kept}) {
    const Names names = names_of(*tensors);
    EXPECT_TRUE(names.contains("model.layers.1.block_sparse_moe.input_linear.weight"));
    EXPECT_TRUE(names.contains("model.layers.1.block_sparse_moe.output_linear.weight"));
    for (const std::string& name : names) EXPECT_EQ(name.find(".experts."), std::string::npos);
  }
  for (const TensorInfo& tensor : planned.kept)
    if (tensor.name.ends_with("layers.2.block_sparse_moe.output_linear.weight")) {
      EXPECT_EQ(tensor.shape, (Shape{4, 64, 32}));
      EXPECT_EQ(tensor.dtype, planned.storage.dtype);
    }
  // They are told apart all the same.
  EXPECT_TRUE(planned.modules.at("model.layers.1.block_sparse_moe.experts.3.up_proj").skip);
  // And read as they are stored.
  const Checkpoint checkpoint(folder);
  const std::string stack = "model.layers.1.block_sparse_moe.input_linear.weight";
  EXPECT_FALSE(checkpoint.contains(stack));
  EXPECT_EQ(checkpoint.info(stack).shape, (Shape{4, 64, 64}));
  std::vector<unsigned char> bytes(4 * 64 * 64 * 2, 1);
  checkpoint.read(stack, bytes.data());
  EXPECT_EQ(bytes, std::vector<unsigned char>(bytes.size(), 0));
}

TEST_F(WholeStacks, EachByItself) {
  granite();
  skip(R"(layers\.1\..*down_proj)");
  const Names names = output();
  const std::string moe = "model.layers.1.block_sparse_moe.";
  EXPECT_TRUE(names.contains(moe + "output_linear.weight"));
  EXPECT_FALSE(names.contains(moe + "input_linear.weight"));
  EXPECT_TRUE(names.contains(moe + "experts.0.gate_proj.qweight") ||
              names.contains(moe + "experts.0.gate_proj.weight_packed"));
  EXPECT_FALSE(names.contains("model.layers.0.block_sparse_moe.output_linear.weight"));
}

TEST_F(WholeStacks, NotWhereSomeExpertsAreQuantized) {
  granite();
  skip(R"(experts\.2\.)");
  const Names names = output();
  const std::string moe = "model.layers.1.block_sparse_moe.";
  EXPECT_TRUE(names.contains(moe + "experts.2.down_proj.weight"));
  EXPECT_FALSE(names.contains(moe + "output_linear.weight"));
}

TEST_F(WholeStacks, NotWhereAwqMayChangeThem) {
  granite();
  skip("experts");
  options.quantize.method = "awq";
  EXPECT_TRUE(output().contains("model.layers.1.block_sparse_moe.experts.2.down_proj.weight"));
}

TEST_F(WholeStacks, OfWhatTheDecoderDoesNotRead) {
  granite();
  EXPECT_EQ(names_of(plan().passed), (Names{"mtp.0.block_sparse_moe.input_linear.weight"}));
}

TEST_F(WholeStacks, PartsThatLieInputsFirstAreRefused) {
  llama4();
  EXPECT_EQ(fault(), "no fault");
  skip("experts");
  EXPECT_TRUE(output().contains("model.layers.1.feed_forward.experts.gate_up_proj"));
  EXPECT_TRUE(output().contains("model.layers.1.feed_forward.experts.down_proj"));
  options.quantize.method = "awq";
  EXPECT_NE(fault().find("awq may have to change it"), std::string::npos) << fault();
  options.quantize.method = "gptq";
  options.quantize.overrides.clear();
  skip(R"(experts\.1\.)");
  EXPECT_NE(fault().find("'model.layers.1.feed_forward.experts.1."), std::string::npos) << fault();
  EXPECT_NE(fault().find("skip all linears of that tensor, or none"), std::string::npos);
}

// gpt-oss: biases go with their weights.
TEST_F(WholeStacks, Biases) {
  std::map<std::string, Shape> stacks;
  for (int layer = 0; layer < 3; ++layer) {
    const std::string experts = prefix(layer) + "mlp.experts.";
    stacks[experts + "gate_up_proj"] = {4, 64, 256};
    stacks[experts + "down_proj"] = {4, 128, 64};
    stacks[experts + "gate_up_proj_bias"] = {4, 256};
    stacks[experts + "down_proj_bias"] = {4, 64};
  }
  write("gpt-oss", stacks);
  EXPECT_TRUE(output().contains("model.layers.0.mlp.experts.1.up_proj.bias"));
  EXPECT_FALSE(output().contains("model.layers.0.mlp.experts.gate_up_proj_bias"));
  skip("experts");
  EXPECT_FALSE(output().contains("model.layers.0.mlp.experts.1.up_proj.bias"));
  for (const auto& [name, shape] : stacks) EXPECT_TRUE(output().contains(name)) << name;
}

}  // namespace
}  // namespace qpipe
