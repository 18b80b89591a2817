// model.safetensors.index.json beside two shards, and a config.json that is right.
#include "pipeline/model/checkpoint.h"
#include "tests/fuzz/fuzz.h"

namespace {

std::string shard(const std::string& first, const std::string& second) {
  std::string header = R"({")" + first + R"(":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},")" +
                       second + R"(":{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::uint64_t bytes = header.size();
  return std::string(reinterpret_cast<const char*>(&bytes), sizeof bytes) + header + "abcdefgh";
}

}  // namespace

void qpipe::fuzz::run_input(std::string_view input) {
  static const bool written = [] {
    write_file("config.json", "{}");
    write_file("model-00001-of-00002.safetensors", shard("a", "b"));
    write_file("model-00002-of-00002.safetensors", shard("c", "d"));
    return true;
  }();
  static_cast<void>(written);
  write_file("model.safetensors.index.json", input);
  const Checkpoint checkpoint(scratch_folder());
  std::vector<char> data(8);
  for (const std::string& name : checkpoint.names()) checkpoint.read(name, data.data());
}
