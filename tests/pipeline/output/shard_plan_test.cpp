#include "pipeline/output/shard_plan.h"

#include <gtest/gtest.h>

namespace qpipe {
namespace {

TensorInfo bytes(const std::string& name, std::int64_t count) { return {name, DType::u8, {count}}; }

TEST(PlanShards, FillsInOrderAndGivesALargeTensorItsOwn) {
  const std::vector<TensorInfo> tensors{bytes("a", 40), bytes("b", 60), bytes("c", 1),
                                        bytes("d", 500), bytes("e", 99)};
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
