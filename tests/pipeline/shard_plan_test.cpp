#include "pipeline/shard_plan.h"

#include <gtest/gtest.h>

#include "pipeline/error.h"

namespace qpipe {
namespace {

TEST(ParseSize, UnitsAreDecimalOrBinaryAsWritten) {
  EXPECT_EQ(parse_size("5GB"), 5'000'000'000);
  EXPECT_EQ(parse_size("1.5 GiB"), 1'610'612'736);
  EXPECT_EQ(parse_size("200KB"), 200'000);
  EXPECT_EQ(parse_size("7"), 7);
  EXPECT_EQ(parse_size("7B"), 7);
  for (const char* bad : {"", "GB", "0GB", "-1GB", "5 gb", "5G", "1.2.3MB", "9999999TB", "5GB "})
    EXPECT_THROW(parse_size(bad), UserError) << bad;
}

TensorInfo bytes(const std::string& name, std::int64_t count) { return {name, DType::u8, {count}}; }

TEST(PlanShards, FillsInOrderAndGivesALargeTensorItsOwn) {
  const std::vector<TensorInfo> tensors{bytes("a", 40), bytes("b", 60), bytes("c", 1), bytes("d", 500), bytes("e", 99)};
  using Plan = std::vector<std::vector<std::size_t>>;
  EXPECT_EQ(plan_shards(tensors, 100), (Plan{{0, 1}, {2}, {3}, {4}}));
  EXPECT_EQ(plan_shards(tensors, 700), (Plan{{0, 1, 2, 3, 4}}));
  EXPECT_EQ(plan_shards({}, 100), (Plan{{}}));
}

TEST(MakeIndex, NamesTheShardOfEveryTensorAndSumsTheirBytes) {
  const std::vector<TensorInfo> tensors{bytes("a", 40), bytes("b", 61)};
  const auto index = make_index(tensors, plan_shards(tensors, 100));
  EXPECT_EQ(index["metadata"]["total_size"], 101);
  EXPECT_EQ(index["weight_map"]["a"], "model-00001-of-00002.safetensors");
  EXPECT_EQ(index["weight_map"]["b"], "model-00002-of-00002.safetensors");
  EXPECT_EQ(shard_name(0, 1), "model.safetensors");
}

}  // namespace
}  // namespace qpipe
