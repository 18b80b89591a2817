#include "pipeline/model/checkpoint.h"

#include <sys/stat.h>

#include "tests/paths.h"
#include "tests/pipeline/file_faults.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

// Tensors of four bytes each, U8; the first byte of the i-th is 4 i + `start`.
std::string shard_of(const std::vector<std::string>& names, int start = 0) {
  std::string header = "{", data;
  for (std::size_t i = 0; i < names.size(); ++i) {
    header += (i > 0 ? ",\"" : "\"") + names[i] +
              R"(":{"dtype":"U8","shape":[4],"data_offsets":[)" + std::to_string(4 * i) + "," +
              std::to_string(4 * i + 4) + "]}";
    for (std::size_t j = 0; j < 4; ++j)
      data += static_cast<char>(4 * i + j + static_cast<std::size_t>(start));
  }
  return safetensors_bytes(header + "}", 0) + data;
}

const std::string index_name = "model.safetensors.index.json";
const std::string first = "model-00001-of-00002.safetensors";
const std::string second = "model-00002-of-00002.safetensors";

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override { write("config.json", R"({"model_type": "llama"})"); }

  void write(const std::string& name, const std::string& text) { folder_.write(name, text); }
  void remove(const std::string& name) { fs::remove(path() / name); }
  fs::path path() const { return folder_.path(); }

  // Shards {a, b} and {c} with their index.
  void write_sharded() {
    write(first, shard_of({"a", "b"}));
    write(second, shard_of({"c"}, 100));
    write_index({{"a", first}, {"b", first}, {"c", second}});
  }
  void write_index(const std::map<std::string, std::string>& map) {
    write(index_name,
          nlohmann::json{{"metadata", {{"total_size", 12}}}, {"weight_map", map}}.dump());
  }

  void expect_refused(ExitCode code, std::vector<std::string> parts) {
    parts.insert(parts.begin(), path().string());
    expect_fault([&] { Checkpoint checkpoint(path()); }, code, parts);
  }
  // Only one, which is thrown to who needs the tensor.
  void expect_fault_of(const std::string& tensor, ExitCode code,
                       const std::vector<std::string>& parts) {
    const Checkpoint checkpoint(path());
    ASSERT_EQ(checkpoint.faults().size(), 1u);
    expect_fault([&] { throw checkpoint.faults().at(tensor); }, code, parts);
    if (!checkpoint.contains(tensor))
      expect_fault([&] { (void)checkpoint.info(tensor); }, code, parts);
  }
  void expect_config_refused(const std::string& text, const std::vector<std::string>& parts) {
    write("config.json", text);
    std::vector<std::string> all = {"config.json: "};
    all.insert(all.end(), parts.begin(), parts.end());
    expect_refused(ExitCode::data, all);
  }
  void expect_index_refused(const std::string& text, const std::vector<std::string>& parts) {
    write(index_name, text);
    std::vector<std::string> all = {index_name + ": "};
    all.insert(all.end(), parts.begin(), parts.end());
    expect_refused(ExitCode::data, all);
  }
  void expect_shard_name_refused(const std::string& name) {
    write_index({{"a", first}, {"b", name}, {"c", second}});
    expect_refused(ExitCode::data,
                   {index_name, "\"b\"", "is not the name of a .safetensors file in this folder"});
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(CheckpointTest, SingleFile) {
  write("model.safetensors", shard_of({"b", "a"}));
  write("consolidated.safetensors", "never opened: model.safetensors is the checkpoint");
  const Checkpoint checkpoint(path());
  EXPECT_EQ(checkpoint.config()["model_type"], "llama");
  EXPECT_EQ(checkpoint.folder(), path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(checkpoint.total_bytes(), 8);
  std::string data(4, '\0');
  checkpoint.read("a", data.data());
  EXPECT_EQ(data, "\x04\x05\x06\x07");
  EXPECT_EQ(checkpoint.info("a").shape, std::vector<std::int64_t>{4});
  EXPECT_FALSE(checkpoint.contains("c"));
  expect_fault([&] { (void)checkpoint.info("c"); }, ExitCode::data,
               {path().string(), "no tensor \"c\""});
  expect_fault([&] { checkpoint.read("c", data.data()); }, ExitCode::data, {"no tensor \"c\""});
}

TEST_F(CheckpointTest, ShardsWithIndex) {
  write_sharded();
  write("other.safetensors", "never opened: the index does not name it");
  const Checkpoint checkpoint(path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(checkpoint.total_bytes(), 12);
  std::string data(4, '\0');
  checkpoint.read("c", data.data());
  EXPECT_EQ(data, "defg");
}

TEST_F(CheckpointTest, IndexOfOneFile) {
  write("model.safetensors", shard_of({"a"}));
  write_index({{"a", "model.safetensors"}});
  EXPECT_TRUE(Checkpoint(path()).contains("a"));
}

TEST_F(CheckpointTest, LinksToBlobsAsInTheHubCache) {
  const TemporaryFolder blobs;
  fs::create_symlink(blobs.write("0123", shard_of({"a"})), path() / "model.safetensors");
  EXPECT_TRUE(Checkpoint(path()).contains("a"));
  fs::remove(blobs.path() / "0123");
  expect_refused(ExitCode::no_input, {"model.safetensors", "No such file"});
}

TEST_F(CheckpointTest, CompleteSetWithoutIndex) {
  write_sharded();
  remove(index_name);
  EXPECT_EQ(Checkpoint(path()).names(), (std::vector<std::string>{"a", "b", "c"}));
}

TEST_F(CheckpointTest, IncompleteSetWithoutIndex) {
  write(second, shard_of({"c"}));
  expect_refused(ExitCode::no_input, {"no " + index_name, "\"" + first + "\" is missing"});
  remove(second);
  write(first, shard_of({"a"}));
  expect_refused(ExitCode::no_input, {"no " + index_name, "\"" + second + "\" is missing"});
  write(second, shard_of({"c"}));
  write("other.safetensors", shard_of({"d"}));
  expect_refused(ExitCode::no_input, {"has 3 .safetensors files but no " + index_name});
}

TEST_F(CheckpointTest, SeveralFilesWithoutIndex) {
  write("a.safetensors", shard_of({"a"}));
  expect_refused(ExitCode::no_input, {"has 1 file(s) .safetensors (\"a.safetensors\"",
                                      "neither model.safetensors nor " + index_name});
  write("b.safetensors", shard_of({"b"}));
  expect_refused(ExitCode::no_input,
                 {"has 2 file(s)", "neither model.safetensors nor " + index_name});
  write("a-00001-of-00000.safetensors", shard_of({"b"}));
  expect_refused(ExitCode::no_input, {"has 3 file(s)"});
  remove("a-00001-of-00000.safetensors");
  write("a-00001-of-+0001.safetensors", shard_of({"b"}));
  expect_refused(ExitCode::no_input, {"has 3 file(s)"});
}

TEST_F(CheckpointTest, FolderFaults) {
  const auto refused = [](const fs::path& folder, const std::string& part) {
    expect_fault([&] { Checkpoint checkpoint(folder); }, ExitCode::no_input,
                 {folder.string() + ": ", part});
  };
  refused(path() / "absent", "Hub names are not downloaded");
  refused(path() / "config.json", "Not a directory");
  fs::create_directory(path() / "empty");
  refused(path() / "empty", "is empty");
  refused(path(), "has no .safetensors files");
  write("pytorch_model-00001-of-00001.bin", "PK");
  refused(path(), "convert them to safetensors: python3 -c");
  remove("config.json");
  refused(path(), "has no config.json");
  const fs::path closed = path() / "closed";
  fs::create_directory(closed);
  fs::permissions(closed, fs::perms::none);
  fs::permissions(path(), fs::perms(0755));
  const WithoutRootRights rights;
  refused(closed, "Permission denied");
}

// transformers reads it with Python's json.loads; a number that is none is no number for us.
TEST_F(CheckpointTest, ConfigIsJsonAsPythonReadsIt) {
  write("model.safetensors", shard_of({"a"}));
  write("config.json",
        R"({"a": NaN, "b": -Infinity, "c": 1e999, "d": 1, "d": 2, "e": "\ud83d", "f": 1})");
  const nlohmann::json config = Checkpoint(path()).config();
  for (const char* key : {"a", "b", "c"}) EXPECT_FALSE(config.at(key).is_number()) << key;
  EXPECT_EQ(config.at("d"), 2);
  EXPECT_EQ(config.at("f"), 1);
}

// Of two equal keys Python takes the last one.
TEST_F(CheckpointTest, IndexIsJsonAsPythonReadsIt) {
  write("y.safetensors", shard_of({"a"}));
  write("config.json", "{}");
  write("model.safetensors.index.json",
        R"({"metadata": {"total_size": NaN}, )"
        R"("weight_map": {"a": "x.safetensors", "a": "y.safetensors"}})");
  EXPECT_NO_THROW(Checkpoint(path()).info("a"));
}

TEST_F(CheckpointTest, ConfigFaults) {
  write("model.safetensors", shard_of({"a"}));
  expect_config_refused("", {"is not valid JSON"});
  expect_config_refused("{model_type}", {"is not valid JSON (byte 2)"});
  expect_config_refused(std::string("{}\0x", 4), {"is not valid JSON (byte 3)"});
  expect_config_refused("[1]", {"is a JSON array, not an object"});
  expect_config_refused("\"llama\"", {"is a JSON string, not an object"});
  expect_config_refused("{\"model_type\": \"\xff\"}", {"is not UTF-8"});
  expect_config_refused(R"({"a": )" + std::string(1'000'000, '['),
                        {"nested deeper than 64 levels"});
  write("config.json", "{}");
  fs::resize_file(path() / "config.json", 100'000'001);
  expect_refused(ExitCode::data, {"config.json: has 100000001 bytes"});
  write("config.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
  expect_refused(ExitCode::no_input, {"config.json: ", "git lfs pull"});
  remove("config.json");
  fs::create_directory(path() / "config.json");
  expect_refused(ExitCode::no_input, {"config.json: is a folder"});
  remove("config.json");
  ASSERT_EQ(mkfifo((path() / "config.json").c_str(), 0600), 0);
  expect_refused(ExitCode::no_input, {"config.json: is a FIFO"});
}

TEST_F(CheckpointTest, IndexFaults) {
  write_sharded();
  expect_index_refused("{", {"is not valid JSON"});
  expect_index_refused("[]", {"is a JSON array"});
  expect_index_refused("{}", {"has no object weight_map"});
  expect_index_refused(R"({"weight_map": []})", {"has no object weight_map"});
  expect_index_refused(R"({"weight_map": {}})", {"weight_map names no tensor"});
  expect_index_refused(R"({"weight_map": {"a": 1}})", {"the shard of \"a\" is not a string"});
  expect_index_refused(R"({"weight_map": )" + std::string(1'000'000, '['), {"nested deeper"});
}

TEST_F(CheckpointTest, ShardNamesThatLeaveTheFolder) {
  write_sharded();
  expect_shard_name_refused("../" + first);
  expect_shard_name_refused("/etc/" + first);
  expect_shard_name_refused((path() / first).string());
  expect_shard_name_refused("./" + first);
  expect_shard_name_refused("sub/" + first);
  expect_shard_name_refused("..\\" + first);
  expect_shard_name_refused("..");
  expect_shard_name_refused("");
  expect_shard_name_refused(".safetensors");
  expect_shard_name_refused("config.json");
  expect_shard_name_refused(std::string("x\0.safetensors", 14));
}

// What the index promises and nobody needs is not missed.
TEST_F(CheckpointTest, IndexNamesAMissingShard) {
  write_sharded();
  remove(second);
  expect_fault_of("c", ExitCode::no_input, {"shard \"" + second + "\" is missing", "for \"c\""});
  remove(first);
  expect_refused(ExitCode::no_input, {"shard \"" + first + "\" is missing", "for \"a\""});
}

TEST_F(CheckpointTest, IndexNamesATensorThatIsNotInItsShard) {
  write_sharded();
  write_index({{"a", first}, {"b", first}, {"c", second}, {"d", second}});
  expect_fault_of("d", ExitCode::data,
                  {second + ": has no tensor \"d\", which " + index_name + " says is there"});
  write_index({{"a", first}, {"b", second}, {"c", second}});  // it is in the other one
  EXPECT_TRUE(Checkpoint(path()).faults().empty());
  EXPECT_TRUE(Checkpoint(path()).contains("b"));
}

TEST_F(CheckpointTest, TensorThatTheIndexDoesNotName) {
  write_sharded();
  write(second, shard_of({"c", "more"}));
  const Checkpoint checkpoint(path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b", "c", "more"}));
  EXPECT_TRUE(checkpoint.faults().empty());
}

TEST_F(CheckpointTest, SameTensorInTwoShards) {
  const auto first_byte_of_b = [&] {
    std::string data(4, '\0');
    Checkpoint(path()).read("b", data.data());
    return static_cast<int>(data[0]);
  };
  write_sharded();
  write(second, shard_of({"c", "b"}, 100));
  const std::vector<std::string> said = {second + ": has tensor \"b\", which is in " + first +
                                         " too"};
  expect_fault_of("b", ExitCode::data, said);
  EXPECT_EQ(first_byte_of_b(), 4);
  write_index({{"a", first}, {"b", second}, {"c", second}});
  expect_fault_of("b", ExitCode::data, said);
  EXPECT_EQ(first_byte_of_b(), 104);
  remove(index_name);
  expect_fault_of("b", ExitCode::data, said);
}

TEST_F(CheckpointTest, AnAdapterIsNotLeftOut) {
  write("model.safetensors", shard_of({"a"}));
  write("adapter_model.safetensors", shard_of({"a.lora_A"}));
  EXPECT_TRUE(Checkpoint(path()).contains("a"));  // no loader looks at it
  write("adapter_config.json", R"({"peft_type": "LORA"})");
  expect_refused(ExitCode::data, {"has an adapter", "merge it"});
  remove("model.safetensors");
  remove("config.json");
  expect_refused(ExitCode::data, {"has an adapter", "merge it"});
}

TEST_F(CheckpointTest, NullQuantizationIsNone) {
  write("model.safetensors", shard_of({"a"}));
  write("config.json", R"({"model_type": "llama", "quantization_config": null})");
  EXPECT_FALSE(Checkpoint(path()).config().contains("quantization_config"));
}

TEST_F(CheckpointTest, SingleFileBesideAForeignIndex) {
  write_sharded();
  write("model.safetensors", shard_of({"a"}));
  expect_refused(ExitCode::data,
                 {"has both model.safetensors and " + index_name, "remove the one that is stale"});
}

TEST_F(CheckpointTest, DamagedShards) {
  write_sharded();
  fs::resize_file(path() / second, fs::file_size(path() / second) - 1);
  expect_refused(ExitCode::data, {second + ": \"c\": the file is truncated"});
  write(second, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
  expect_refused(ExitCode::no_input, {second, "git lfs pull"});
  remove(second);
  ASSERT_EQ(mkfifo((path() / second).c_str(), 0600), 0);
  expect_refused(ExitCode::no_input, {second + ": is a FIFO"});
  remove(second);
  fs::create_directory(path() / second);
  expect_refused(ExitCode::no_input, {second + ": is a folder"});
  remove(second);
  fs::create_symlink("/dev/zero", path() / second);
  expect_refused(ExitCode::no_input, {second + ": is a device"});
  remove(second);
  write(second, shard_of({"c"}));
  fs::permissions(path() / second, fs::perms::none);
  fs::permissions(path(), fs::perms(0755));
  const WithoutRootRights rights;
  expect_refused(ExitCode::no_input, {second + ": cannot be opened: Permission denied"});
}

TEST_F(CheckpointTest, NoTensors) {
  write("model.safetensors", shard_of({}));
  expect_refused(ExitCode::data, {"holds no tensor"});
}

TEST(CheckpointOracles, EveryFolder) {
  const fs::path folder = shared_folder() / "oracles" / "checkpoints";
  if (!fs::exists(folder)) GTEST_SKIP() << "no " << folder;
  int checkpoints = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const Checkpoint checkpoint(entry.path());
    std::int64_t bytes = 0;
    for (const std::string& name : checkpoint.names()) {
      std::vector<char> data(static_cast<std::size_t>(checkpoint.info(name).bytes()));
      checkpoint.read(name, data.data());
      bytes += checkpoint.info(name).bytes();
    }
    EXPECT_EQ(bytes, checkpoint.total_bytes()) << entry.path();
    ++checkpoints;
  }
  EXPECT_GT(checkpoints, 5);
}

}  // namespace
}  // namespace qpipe
