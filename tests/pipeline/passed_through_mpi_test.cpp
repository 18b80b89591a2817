// Whole runs of a model with a vision tower, MTP layers and odd buffers: what the decoder doesn't
// read is in the output byte for byte, whatever the ranks and the method.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "launch/comm.h"
#include "pipeline/commands/verify.h"
#include "pipeline/quantize.h"
#include "tests/pipeline/extra_tensors.h"
#include "tests/pipeline/oracle_options.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

class PassedThrough : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!fs::exists(oracles)) GTEST_SKIP() << "no oracles at " << oracles;
    if (comm.rank() == 0) {
      fs::remove_all(folder);
      const fs::path model = oracles / "models" / "llama";
      TensorMap tensors = read_tensors(model);
      add_extras(tensors);
      add_constants(tensors);
      nlohmann::json config = Checkpoint(model).config();
      config["text_config"] = {{"dtype", "bfloat16"}, {"hidden_size", 64}};
      config["vision_config"] = {{"torch_dtype", "bfloat16"}};
      write_checkpoint(folder / "in", config, tensors);
    }
    (void)comm.all_gather({0.0});
  }
  void TearDown() override {
    (void)comm.all_gather({0.0});
    if (comm.rank() == 0) fs::remove_all(folder);
  }

  Stream stream{Backend::cpu, 0};
  Comm comm{stream, {std::chrono::seconds(60), true}};
  const fs::path folder =
      fs::temp_directory_path() / ("qpipe_passed_through_" + std::to_string(comm.size()));
};

TEST_P(PassedThrough, IsThereByteForByte) {
  Options options = oracle_options("llama", GetParam(), folder / "out");
  options.model.path = (folder / "in").string();
  options.parallel.backend = "cpu";
  options.output.max_shard_size = "60KB";
  ASSERT_NO_THROW(quantize(options, false));
  if (comm.rank() != 0) return;
  const TensorMap written = read_tensors(folder / "out");
  TensorMap extras;
  add_extras(extras);
  for (const auto& [name, tensor] : extras) {
    ASSERT_TRUE(written.contains(name)) << name;
    EXPECT_EQ(written.at(name).info.dtype, tensor.info.dtype) << name;
    EXPECT_EQ(written.at(name).info.shape, tensor.info.shape) << name;
    EXPECT_EQ(written.at(name).bytes, tensor.bytes) << name;
  }
  TensorMap constants;
  add_constants(constants);
  for (const auto& [name, tensor] : constants) EXPECT_FALSE(written.contains(name)) << name;

  const Verification verified = verify_checkpoint(folder / "out", folder / "in");
  EXPECT_EQ(verified.faults, std::vector<std::string>{});
  const nlohmann::json config = Checkpoint(folder / "out").config();
  const nlohmann::json dtype = config["torch_dtype"];
  EXPECT_EQ(config["text_config"], (nlohmann::json{{"torch_dtype", dtype}, {"hidden_size", 64}}));
  EXPECT_EQ(config["vision_config"], (nlohmann::json{{"torch_dtype", "bfloat16"}}));
}

std::string method_name(const testing::TestParamInfo<const char*>& method) {
  std::string name = method.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Methods, PassedThrough, testing::Values("gptq", "awq", "bnb-nf4", "fp8"),
                         method_name);

}  // namespace
}  // namespace qpipe
