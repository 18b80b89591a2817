// What is put into a store comes out again, whatever its place and the order of the blocks.
#include "stages/block_store.h"

#include <filesystem>
#include <system_error>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

constexpr std::int64_t width = 40;
const std::vector<std::int64_t> ragged{24, 24, 24, 24, 24, 24, 7};

struct Case {
  Backend backend;
  Place place;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Backend backend : backends())
    for (const Place place : {Place::device, Place::host, Place::disk})
      all.push_back({backend, place});
  return all;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  return std::string(info.param.place == Place::device ? "device"
                     : info.param.place == Place::host ? "host"
                                                       : "disk") +
         (info.param.backend == Backend::cuda ? "_cuda" : "_cpu");
}

class BlockStoreTest : public testing::TestWithParam<Case> {
 protected:
  // Small integers, exact in every compute type.
  static std::vector<float> values(std::int64_t rows, std::int64_t cols, int seed) {
    std::vector<float> result;
    for (std::int64_t i = 0; i < rows * cols; ++i)
      result.push_back(static_cast<float>((i * 7 + seed * 31) % 251));
    return result;
  }
  void put(Tensor to, const std::vector<float>& from) {
    if (to.dtype == DType::f32)
      return copy_to_device(to.data, from.data(), from.size() * sizeof(float), stream);
    std::vector<bf16> narrow;
    for (const float value : from) narrow.push_back(to_bf16(value));
    copy_to_device(to.data, narrow.data(), narrow.size() * sizeof(bf16), stream);
  }
  std::vector<float> get(ConstTensor from) {
    std::vector<float> result(static_cast<std::size_t>(from.size()));
    if (from.dtype == DType::f32) {
      copy_to_host(result.data(), from.data, result.size() * sizeof(float), stream);
      return result;
    }
    std::vector<bf16> narrow(result.size());
    copy_to_host(narrow.data(), from.data, narrow.size() * sizeof(bf16), stream);
    for (std::size_t i = 0; i < narrow.size(); ++i) result[i] = to_float(narrow[i]);
    return result;
  }
  BlockStore make(const std::vector<std::int64_t>& rows) {
    return {rows, width, GetParam().place, folder, stream};
  }
  void fill(BlockStore& store, std::int64_t cols, int seed) {
    BlockPass pass(store, Access::write, all_blocks(store.blocks()), cols, stream);
    for (std::size_t b = 0; b < store.blocks(); ++b) {
      put(pass.begin(), values(store.rows(b), cols, seed + static_cast<int>(b)));
      pass.end(cols);
    }
    pass.finish();
  }
  std::vector<float> block_of(const BlockStore& store, std::size_t b, std::int64_t cols) {
    const TensorArray copy(stream.compute_dtype(), store.rows(b), cols, stream);
    read_block(store, b, copy, stream);
    return get(copy);
  }

  Stream stream{GetParam().backend, 0};
  const std::string folder = testing::TempDir();
};

TEST_P(BlockStoreTest, PassesReadWhatPassesWrote) {
  BlockStore store = make(ragged);
  fill(store, width, 0);
  const std::vector<std::size_t> order{6, 0, 3, 3, 1, 5, 2, 4, 6};
  BlockPass pass(store, order, width, stream);
  for (const std::size_t b : order) {
    const Tensor block = pass.begin();
    ASSERT_EQ(block.rows, ragged[b]);
    EXPECT_EQ(get(block), values(ragged[b], width, static_cast<int>(b)));
    pass.end(width);
  }
  pass.finish();
}

// Work that is queued only, so that copies overlap with it: each block is made of what it was, and
// gets wider.
TEST_P(BlockStoreTest, UpdatesMayChangeTheWidth) {
  BlockStore store = make(ragged);
  fill(store, 16, 0);
  std::vector<TensorArray> next;
  for (std::size_t b = 0; b < ragged.size(); ++b) {
    next.emplace_back(stream.compute_dtype(), ragged[b], width, stream);
    put(next.back(), values(ragged[b], width, 100 + static_cast<int>(b)));
  }
  std::vector<TensorArray> seen(ragged.size());
  BlockPass pass(store, Access::update, all_blocks(ragged.size()), 16, stream);
  for (std::size_t b = 0; b < ragged.size(); ++b) {
    const Tensor block = pass.begin();
    seen[b] = TensorArray(block.dtype, block.rows, block.cols, stream);
    copy_on_device(seen[b].view.data, block.data, seen[b].memory.bytes(), stream);
    copy_on_device(block.data, next[b].view.data, next[b].memory.bytes(), stream);
    pass.end(width);
  }
  pass.finish();
  for (std::size_t b = 0; b < ragged.size(); ++b) {
    EXPECT_EQ(get(seen[b]), values(ragged[b], 16, static_cast<int>(b)));
    EXPECT_EQ(block_of(store, b, width), values(ragged[b], width, 100 + static_cast<int>(b)));
  }
}

TEST_P(BlockStoreTest, SingleBlocksInAnyOrder) {
  BlockStore store = make(ragged);
  for (const std::size_t b : {5, 0, 6, 2, 1, 4, 3, 0}) {
    const TensorArray block(stream.compute_dtype(), ragged[b], width, stream);
    put(block, values(ragged[b], width, static_cast<int>(b)));
    write_block(store, b, block, stream);
  }
  for (const std::size_t b : {3, 6, 0, 5, 4, 1, 2})
    EXPECT_EQ(block_of(store, b, width), values(ragged[b], width, static_cast<int>(b)));
  const TensorArray wrong(stream.compute_dtype(), 24, width, stream);
  EXPECT_THROW(write_block(store, 6, wrong, stream), std::invalid_argument);
}

TEST_P(BlockStoreTest, CopiesAndMoves) {
  BlockStore store = make(ragged);
  fill(store, width, 3);
  BlockStore copy = make(ragged);
  copy_blocks(store, copy, stream);
  fill(store, width, 50);
  std::swap(store, copy);
  EXPECT_EQ(block_of(store, 6, width), values(7, width, 9));
  EXPECT_EQ(block_of(copy, 6, width), values(7, width, 56));
}

TEST_P(BlockStoreTest, NoBlocks) {
  BlockStore store = make({});
  BlockPass pass(store, Access::update, {}, width, stream);
  pass.finish();
  EXPECT_EQ(store.blocks(), 0U);
  BlockStore copy = make({});
  copy_blocks(store, copy, stream);
}

// A pass that is left by an exception releases its windows after the copies.
TEST_P(BlockStoreTest, FaultInTheWork) {
  BlockStore store = make(ragged);
  fill(store, width, 0);
  const auto fail = [&] {
    BlockPass pass(store, Access::update, all_blocks(ragged.size()), width, stream);
    pass.begin();
    pass.end(width);
    pass.begin();
    throw std::runtime_error("work");
  };
  EXPECT_THROW(fail(), std::runtime_error);
  EXPECT_EQ(block_of(store, 6, width), values(7, width, 6));
}

TEST_P(BlockStoreTest, DeviceMemoryIsThatOfTheWindows) {
  if (GetParam().place == Place::device) GTEST_SKIP() << "all of it is on the device";
  const std::vector<std::int64_t> many(64, 24);
  BlockStore store = make(many);
  const std::size_t block = (24 * width * size_of(stream.compute_dtype()) + 255) / 256 * 256;
  stream.set_limit(stream.bytes_in_use() + 3 * block);
  fill(store, width, 0);
  BlockPass pass(store, Access::update, all_blocks(many.size()), width, stream);
  EXPECT_THROW(Buffer(1, stream), std::runtime_error);
  stream.set_limit(0);
  for (std::size_t b = 0; b < many.size(); ++b) {
    pass.begin();
    pass.end(width);
  }
  pass.finish();
  EXPECT_EQ(block_of(store, 63, width), values(24, width, 63));
}

TEST(BlockStore, FilesHaveNoNamesAndFaultsNameTheFolder) {
  Stream stream(Backend::cpu, 0);
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / "qpipe-block-store";
  std::filesystem::create_directories(folder);
  const BlockStore store({8, 8}, 8, Place::disk, folder.string(), stream);
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove_all(folder);
  try {
    const BlockStore nowhere({8}, 8, Place::disk, (folder / "absent").string(), stream);
    FAIL() << "made a file in a folder that is not there";
  } catch (const std::system_error& error) {
    EXPECT_NE(std::string(error.what()).find("absent: cannot make a file"), std::string::npos)
        << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Places, BlockStoreTest, testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace qpipe
