// verify --original: each tensor of the original that a quantized folder lacks or has changed.
#include "pipeline/commands/verify_original.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "pipeline/commands/verify.h"
#include "tests/paths.h"
#include "tests/pipeline/extra_tensors.h"
#include "tests/pipeline/file_faults.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

class VerifyOriginal : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(oracles)) GTEST_SKIP() << "no oracles at " << oracles;
    original = read_tensors(oracles / "models" / "llama-mha");
    quantized = read_tensors(oracles / "checkpoints" / "gptq-sym4-g32");
    add_extras(original);
    add_extras(quantized);
    add_constants(original);
  }

  std::vector<std::string> faults() {
    const fs::path models = oracles / "models" / "llama-mha";
    const fs::path checkpoints = oracles / "checkpoints" / "gptq-sym4-g32";
    write_checkpoint(folder.path() / "original", Checkpoint(models).config(), original);
    write_checkpoint(folder.path() / "quantized", Checkpoint(checkpoints).config(), quantized);
    return verify_checkpoint(folder.path() / "quantized", folder.path() / "original").faults;
  }

  void expect_only(const std::string& part) {
    const std::vector<std::string> all = faults();
    ASSERT_EQ(all.size(), 1u) << (all.empty() ? "" : all.front() + "\n" + all.back());
    EXPECT_NE(all.front().find(part), std::string::npos) << all.front();
    EXPECT_EQ(all.front().find('\n'), std::string::npos);
  }

  const fs::path oracles = shared_folder() / "oracles";
  TensorMap original;
  TensorMap quantized;
  TemporaryFolder folder;
};

// NaN, infinities and odd types among what passes through; constants are not asked for.
TEST_F(VerifyOriginal, CompleteOutputHasNoFaults) {
  EXPECT_EQ(faults(), std::vector<std::string>{});
}

TEST_F(VerifyOriginal, EachTensorThatIsLackingHasItsLine) {
  TensorMap extras;
  add_extras(extras);
  for (const auto& [name, tensor] : extras) quantized.erase(name);
  const std::vector<std::string> all = faults();
  ASSERT_EQ(all.size(), extras.size());
  auto fault = all.begin();
  for (const auto& [name, tensor] : extras)
    EXPECT_NE((fault++)->find("lacks tensor '" + name + "'"), std::string::npos);
}

TEST_F(VerifyOriginal, APassedTensorKeepsBytesTypeAndShape) {
  quantized.at("extra.table").bytes.back() ^= 1;
  expect_only("'extra.table' is changed: it has other values");
  quantized = read_tensors(oracles / "checkpoints" / "gptq-sym4-g32");
  add_extras(quantized);
  quantized.at("mtp.fc.weight").info.dtype = DType::f16;
  expect_only("'mtp.fc.weight' is changed: it is F16 [4, 8], and BF16 [4, 8] in the original");
  quantized.at("mtp.fc.weight").info = {"", DType::bf16, {8, 4}};
  expect_only("'mtp.fc.weight' is changed: it is BF16 [8, 4]");
}

TEST_F(VerifyOriginal, WhatTheDecoderReadsHasTheOriginalsValues) {
  StoredBytes& norm = quantized.at("model.norm.weight");
  norm.bytes[1] ^= 1;
  expect_only("'model.norm.weight' is changed: it has other values");
}

TEST_F(VerifyOriginal, ALinearWithoutWeightIsLacking) {
  for (const char* part : {".qweight", ".qzeros", ".scales", ".g_idx"})
    quantized.erase(std::string("model.layers.1.mlp.up_proj") + part);
  const std::vector<std::string> all = faults();
  EXPECT_TRUE(std::any_of(all.begin(), all.end(), [](const std::string& fault) {
    return fault.find("lacks tensor 'model.layers.1.mlp.up_proj.weight' BF16") != std::string::npos;
  }));
}

}  // namespace
}  // namespace qpipe
