#include "pipeline/data/dataset.h"

#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "pipeline/data/text_file.h"
#include "pipeline/data/tokenizer.h"
#include "pipeline/data/windows.h"
#include "pipeline/files/error.h"
#include "pipeline/files/xxh3.h"
#include "pipeline/model/safetensors.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Ids = std::vector<std::int32_t>;

const fs::path golden = tests_folder() / "golden";

std::string read_all(const fs::path& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

std::string compressed(const std::string& text, const fs::path& scratch) {
  gzFile file = gzopen(scratch.c_str(), "wb");
  gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  gzclose(file);
  return read_all(scratch);
}

class DatasetTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qpipe-dataset-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& contents) const {
    std::ofstream(folder_ / name, std::ios::binary) << contents;
    return folder_ / name;
  }
  template <typename Integer>
  fs::path write_safetensors(DType dtype, const std::vector<std::int64_t>& shape,
                             const std::vector<Integer>& values) const {
    const fs::path path = folder_ / "tokens.safetensors";
    SafetensorsWriter writer(path, {{"input_ids", dtype, shape}});
    writer.write("input_ids", values.data());
    writer.finish();
    return path;
  }

  fs::path folder_;
};

void expect_fault(const DatasetRequest& request, ExitCode code,
                  const std::vector<std::string>& parts) {
  try {
    load_tokens(request);
  } catch (const UserError& error) {
    const std::string message = error.what();
    EXPECT_EQ(static_cast<int>(error.code), static_cast<int>(code)) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string& part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks: " << part;
    return;
  }
  ADD_FAILURE() << "no fault";
}

// ---- token files ----

// The file is h5py's: value of row r, column c is (8 r + c) mod 97.
DatasetRequest h5py_request(const std::string& dataset) {
  DatasetRequest request;
  request.data = golden / "tokens_h5py.h5";
  request.dataset = dataset;
  request.vocab = 97;
  return request;
}

TEST_F(DatasetTest, ReadsIntegersOfH5py) {
  for (const char* dataset : {"as_int32", "as_int64", "as_uint16", "as_uint32", "as_uint8",
                              "calib/chunked", "/calib/chunked"}) {
    const Tokens all = load_tokens(h5py_request(dataset));
    ASSERT_EQ(all.samples, 5);
    ASSERT_EQ(all.seqlen, 8);
    for (int i = 0; i < 40; ++i) EXPECT_EQ(all.ids[i], i % 97) << dataset;
    EXPECT_NE(all.source.find("all 5 samples"), std::string::npos) << all.source;
  }
}

TEST_F(DatasetTest, TakesTheFirstSamplesAndTokens) {
  DatasetRequest request = h5py_request("as_int32");
  request.samples = 3;
  request.seqlen = 2;
  const Tokens tokens = load_tokens(request);
  EXPECT_EQ(tokens.ids, (Ids{0, 1, 8, 9, 16, 17}));
  EXPECT_NE(tokens.source.find("first 3 of 5 samples, first 2 of 8 tokens"), std::string::npos)
      << tokens.source;
}

TEST_F(DatasetTest, RefusesBadHdf5) {
  const std::string file = "tokens_h5py.h5";
  expect_fault(h5py_request("nothing"), ExitCode::data, {file, "\"nothing\"", "as_int32", "calib"});
  expect_fault(h5py_request("calib"), ExitCode::data, {file, "\"calib\""});
  expect_fault(h5py_request("float"), ExitCode::data, {file, "float", "integers"});
  expect_fault(h5py_request("flat"), ExitCode::data, {file, "flat", "[8]", "[samples, seqlen]"});
  expect_fault(h5py_request("scalar"), ExitCode::data, {file, "scalar", "[]"});
  expect_fault(h5py_request("three"), ExitCode::data, {file, "three", "[5, 2, 4]"});
  expect_fault(h5py_request("empty"), ExitCode::data, {file, "empty", "[0, 8]"});
  expect_fault(h5py_request("huge"), ExitCode::data,
               {file, "sample 3, position 2", "1099511627776"});
  expect_fault(h5py_request("negative"), ExitCode::data, {file, "sample 3, position 2", "-1"});
  DatasetRequest request = h5py_request("as_int32");
  request.vocab = 39;
  expect_fault(request, ExitCode::data, {file, "sample 4, position 7", "39"});
  request.vocab = 97;
  request.samples = 6;
  expect_fault(request, ExitCode::data, {file, "5 samples", "6 are needed"});
  request.samples = 5;
  request.seqlen = 9;
  expect_fault(request, ExitCode::data, {file, "8 tokens", "9"});
  request.seqlen = -1;
  expect_fault(request, ExitCode::config, {"-1"});
}

TEST_F(DatasetTest, RefusesDamagedAndMissingFilesQuietly) {
  DatasetRequest request;
  request.vocab = 97;
  request.dataset = "as_int32";
  const std::string whole = read_all(golden / "tokens_h5py.h5");
  testing::internal::CaptureStderr();
  request.data = write("cut.h5", whole.substr(0, whole.size() / 2));
  expect_fault(request, ExitCode::data, {"cut.h5", "damaged"});
  request.data = write("text.h5", "this is not HDF5");
  expect_fault(request, ExitCode::data, {"text.h5", "not an HDF5 file"});
  request.data = folder_ / "absent.h5";
  expect_fault(request, ExitCode::no_input, {"absent.h5"});
  request.data = write("tokens.npy", "x");
  expect_fault(request, ExitCode::no_input, {"tokens.npy", ".safetensors", ".jsonl"});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(DatasetTest, ReadsSafetensors) {
  DatasetRequest request;
  request.vocab = 10;
  request.data = write_safetensors<std::int64_t>(DType::i64, {2, 3}, {1, 2, 3, 4, 5, 6});
  request.seqlen = 2;
  EXPECT_EQ(load_tokens(request).ids, (Ids{1, 2, 4, 5}));
  request.data = write_safetensors<std::int32_t>(DType::i32, {2, 3}, {1, 2, 3, 4, 5, 10});
  request.seqlen = 0;
  expect_fault(request, ExitCode::data, {"sample 1, position 2", "10"});
  request.dataset = "input_idz";
  expect_fault(request, ExitCode::data, {"input_idz", "input_ids"});
  request.dataset = "input_ids";
  request.data = write_safetensors<std::int64_t>(DType::i64, {1, 2}, {1, std::int64_t{1} << 33});
  expect_fault(request, ExitCode::data, {"sample 0, position 1", "8589934592"});
  request.data = write_safetensors<std::uint16_t>(DType::u16, {1, 2}, {1, 9});
  EXPECT_EQ(load_tokens(request).ids, (Ids{1, 9}));
  request.data = write_safetensors<std::uint8_t>(DType::u8, {2, 1}, {8, 7});
  EXPECT_EQ(load_tokens(request).ids, (Ids{8, 7}));
  request.data = write_safetensors<std::uint32_t>(DType::u32, {1, 2}, {1, 0x80000000});
  expect_fault(request, ExitCode::data, {"sample 0, position 1", "2147483648"});
  request.data = write_safetensors<float>(DType::f32, {1, 2}, {1, 2});
  expect_fault(request, ExitCode::data, {"F32", "I64"});
}

TEST_F(DatasetTest, Hdf5RoundTrip) {
  const Tokens tokens = load_tokens(h5py_request("as_int32"));
  DatasetRequest request;
  request.vocab = 97;
  for (const char* name : {"input_ids", "calib/ids"}) {
    request.data = folder_ / "out.h5";
    request.dataset = name;
    write_tokens_hdf5(tokens, request.data, name);
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1) << "a temporary file is left";
    const Tokens read = load_tokens(request);
    EXPECT_EQ(read.ids, tokens.ids);
    EXPECT_EQ(read.hash, tokens.hash);
  }
  testing::internal::CaptureStderr();
  EXPECT_THROW(write_tokens_hdf5(tokens, folder_ / "no-such-folder/out.h5", "input_ids"),
               UserError);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(DatasetTest, HashIsOfIdsAndShape) {
  DatasetRequest request;
  request.vocab = 97;
  std::set<std::string> hashes;
  for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{2, 3}, {3, 2}, {1, 6}}) {
    request.data = write_safetensors<std::int32_t>(DType::i32, shape, {1, 2, 3, 4, 5, 6});
    hashes.insert(load_tokens(request).hash);
  }
  request.data = write_safetensors<std::int32_t>(DType::i32, {2, 3}, {1, 2, 3, 4, 5, 7});
  hashes.insert(load_tokens(request).hash);
  EXPECT_EQ(hashes.size(), 4u);
  for (const std::string& hash : hashes) EXPECT_EQ(hash.size(), 32u);
}

// XXH3-128 of nothing with seed 0: the constant of xxHash's own test suite.
TEST(Xxh3, KnownHash) { EXPECT_EQ(Xxh3().hexadecimal(), "99aa06d3014798d86001c324468d497f"); }

// ---- windows ----

TEST(Windows, StartsAreUniformAndFixed) {
  const auto starts = random_windows(100, 91, 10000, 7);
  std::vector<int> counts(10);
  for (const std::int64_t start : starts) {
    ASSERT_GE(start, 0);
    ASSERT_LE(start, 9);
    ++counts[static_cast<std::size_t>(start)];
  }
  // Binomial(10000, 1/10): standard deviation 30, so 180 is six of them.
  for (const int count : counts) EXPECT_NEAR(count, 1000, 180);
  EXPECT_EQ(random_windows(100, 91, 10000, 7), starts);
  EXPECT_NE(random_windows(100, 91, 10000, 8), starts);
  EXPECT_EQ(random_windows(5, 5, 3, 0), (std::vector<std::int64_t>{0, 0, 0}));
  EXPECT_TRUE(random_windows(5, 5, 0, 0).empty());
}

TEST(Windows, DrawsFollowTheStandardsGenerator) {
  // [rand.predef]: the 10000th draw of a default-constructed mt19937_64 (seed 5489) is
  // 9981545732273789042.
  std::mt19937_64 generator;
  generator.discard(9999);
  const std::uint64_t bound = 1'000'003;
  EXPECT_EQ(uniform_below(bound, generator), 9981545732273789042u % bound);
}

TEST(Windows, BoundsNearTheTopAreUnbiased) {
  // bound = 3·2^62: a plain remainder would give values below 2^62 half of the time instead of a
  // third.
  std::mt19937_64 generator(1);
  int low = 0;
  for (int i = 0; i < 9000; ++i)
    low += uniform_below(std::uint64_t{3} << 62, generator) < (std::uint64_t{1} << 62) ? 1 : 0;
  EXPECT_NEAR(low, 3000, 270);  // standard deviation 45
}

TEST(Windows, ChoicesAreDifferent) {
  const auto chosen = random_choice(50, 20, 3);
  EXPECT_EQ(std::set<std::int64_t>(chosen.begin(), chosen.end()).size(), 20u);
  EXPECT_EQ(random_choice(50, 20, 3), chosen);
  const auto all = random_choice(50, 50, 3);
  const std::set<std::int64_t> distinct(all.begin(), all.end());
  EXPECT_EQ(distinct.size(), 50u);
  EXPECT_EQ(*distinct.begin(), 0);
  EXPECT_EQ(*distinct.rbegin(), 49);
}

TEST(Windows, SharesSumToTheSamples) {
  using Counts = std::vector<std::int64_t>;
  EXPECT_EQ(divide_by_shares(128, {2.0, 1.0, 1.0}), (Counts{64, 32, 32}));
  EXPECT_EQ(divide_by_shares(10, {1.0, 1.0, 1.0}), (Counts{4, 3, 3}));
  EXPECT_EQ(divide_by_shares(10, {0.26, 0.25, 0.49}), (Counts{3, 2, 5}));
  EXPECT_EQ(divide_by_shares(1, {1.0, 3.0}), (Counts{0, 1}));
  EXPECT_EQ(divide_by_shares(7, {5.0}), (Counts{7}));
  EXPECT_EQ(divide_by_shares(3, {1e-9, 1e9}), (Counts{0, 3}));
}

// ---- text files ----

TEST_F(DatasetTest, ReadsTextPlainAndCompressed) {
  const std::string text = "One.\r\n\nTwo \xC3\xA9\n";
  EXPECT_TRUE(is_text_file("a.txt"));
  EXPECT_TRUE(is_text_file("a.jsonl.gz"));
  for (const char* name : {"a.txt.zst", "a.json", "a.parquet", "a.parquet.gz", "a.jsonl.zst"})
    EXPECT_TRUE(is_text_file(name)) << name;
  EXPECT_FALSE(is_text_file("a.h5.gz"));
  EXPECT_FALSE(is_text_file("a.gz"));
  EXPECT_EQ(read_documents(write("a.txt", text), "text"), std::vector{Document(text)});
  EXPECT_EQ(read_documents(write("empty.txt", ""), "text"), std::vector{Document(std::string())});
  const std::string packed = compressed(text, folder_ / "scratch");
  EXPECT_EQ(read_documents(write("a.txt.gz", packed), "text"), std::vector{Document(text)});
  EXPECT_EQ(read_documents(write("two.txt.gz", packed + packed), "text"),
            std::vector{Document(text + text)});
}

TEST_F(DatasetTest, ReadsJsonLines) {
  const auto documents = read_documents(
      write("a.jsonl", "{\"body\": \"one\\n\"}\r\n\n  \n{\"n\": 1, \"body\": \"\\u00e9\"}"),
      "body");
  EXPECT_EQ(documents, (std::vector<Document>{{"one\n"}, {"\xC3\xA9"}}));
}

TEST_F(DatasetTest, RefusesBadText) {
  const auto fault = [&](const fs::path& path, const std::vector<std::string>& parts) {
    try {
      read_documents(path, "text");
      ADD_FAILURE() << path << " was read";
    } catch (const UserError& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      for (const std::string& part : parts)
        EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks: " << part;
    }
  };
  fault(write("a.jsonl", "{\"text\": \"x\"}\n\n{\"text\": \n"), {"a.jsonl:3"});
  fault(write("a.jsonl", "{\"text\": \"x\"}\n[1]\n"), {"a.jsonl:2", "object"});
  fault(write("a.jsonl", "{\"body\": \"x\", \"id\": 1}\n"),
        {"a.jsonl:1", "\"text\"", "\"body\"", "text_field"});
  fault(write("a.jsonl", "{\"text\": 7}\n"), {"a.jsonl:1", "number"});
  fault(write("a.jsonl", "{\"text\": \"\xFF\"}\n"), {"a.jsonl:1"});
  fault(write("a.txt.gz", "not gzip"), {"a.txt.gz", "not a gzip file"});
  std::string packed = compressed(std::string(10000, 'x') + "end", folder_ / "scratch");
  fault(write("a.txt.gz", packed.substr(0, packed.size() - 12)), {"a.txt.gz", "damaged"});
  packed[packed.size() - 6] = static_cast<char>(packed[packed.size() - 6] ^ 1);  // the checksum
  fault(write("a.txt.gz", packed), {"a.txt.gz", "damaged"});
  fault(folder_ / "absent.txt.gz", {"absent.txt.gz"});
  fault(folder_ / "absent.txt", {"absent.txt"});
}

// ---- tokenizer ----

// With QPIPE_PYTHON set nothing is left out, and any other fault than a missing package fails.
bool python_has_tokenizers() {
  if (std::getenv("QPIPE_PYTHON") != nullptr) return true;
  try {
    tokenize({}, golden / "tokenizer/tokenizer.json", "nothing");
    return true;
  } catch (const UserError& error) {
    return error.code != ExitCode::unavailable;
  }
}

class TextTest : public DatasetTest {
 protected:
  void SetUp() override {
    DatasetTest::SetUp();
    static const bool available = python_has_tokenizers();
    if (!available) GTEST_SKIP() << "no Python with the package tokenizers; set QPIPE_PYTHON";
    request_.data = golden / "tokenizer/text.jsonl.gz";
    request_.tokenizer = golden / "tokenizer";
    request_.cache = folder_ / "cache";
    request_.vocab = 320;
  }
  std::vector<fs::path> cache_entries() const {
    std::vector<fs::path> entries;
    for (const auto& entry : fs::directory_iterator(folder_ / "cache"))
      entries.push_back(entry.path());
    return entries;
  }
  // What `work` says by spdlog.
  template <typename Work>
  static std::string logged(const Work& work) {
    std::ostringstream text;
    const auto before = spdlog::default_logger();
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text)));
    work();
    spdlog::set_default_logger(before);
    return text.str();
  }

  DatasetRequest request_;
};

std::vector<Ids> golden_ids(const char* name) {
  return json::parse(std::ifstream(golden / "tokenizer" / name)).get<std::vector<Ids>>();
}

std::vector<Ids> split(const TokenizedText& text) {
  std::vector<Ids> documents;
  auto at = text.ids.begin();
  for (const std::int64_t count : text.counts) {
    documents.emplace_back(at, at + count);
    at += count;
  }
  return documents;
}

// One end-of-sequence token (2) between neighbours that have tokens and where there is none yet.
Ids joined(const std::vector<Ids>& documents) {
  Ids ids;
  for (const Ids& document : documents) {
    if (document.empty()) continue;
    if (!ids.empty()) ids.push_back(2);
    ids.insert(ids.end(), document.begin(), document.end());
  }
  return ids;
}

TEST_F(TextTest, IdsAreHuggingFaces) {
  const auto documents = read_documents(request_.data, "text");
  EXPECT_EQ(split(tokenize(documents, golden / "tokenizer/tokenizer.json", "text")),
            golden_ids("ids.json"));
  // Special tokens by the post-processor; no truncation, no padding.
  EXPECT_EQ(split(tokenize(documents, golden / "tokenizer/with_bos/tokenizer.json", "text")),
            golden_ids("ids_with_bos.json"));
}

// Llama 3's template writes the day, which SOURCE_DATE_EPOCH gives.
TEST_F(TextTest, ChatsAreWhatTransformersMakesOfThem) {
  setenv("SOURCE_DATE_EPOCH", "1735041600", 1);
  std::size_t chats = 0;
  for (const char* family : {"llama3", "qwen3", "gemma3", "mistral"}) {
    const fs::path folder = golden / "chats" / family;
    const auto expected = json::parse(std::ifstream(folder / "ids.json")).get<std::vector<Ids>>();
    const auto ids = split(
        tokenize(read_documents(folder / "rows.jsonl", "text"), folder / "tokenizer.json", "rows"));
    ASSERT_EQ(ids.size(), expected.size());
    for (std::size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(ids[i], expected[i]) << family << i;
    chats += ids.size();
  }
  unsetenv("SOURCE_DATE_EPOCH");
  EXPECT_EQ(chats, 31u);
}

TEST_F(TextTest, SentencePieceModelsWithoutATokenizerJson) {
  const fs::path folder = golden / "sentencepiece";
  ASSERT_EQ(tokenizer_files(folder),
            (std::vector<fs::path>{folder / "tokenizer.model", folder / "tokenizer_config.json"}));
  const auto expected = json::parse(std::ifstream(folder / "ids.json")).get<std::vector<Ids>>();
  EXPECT_EQ(split(tokenize(read_documents(folder / "rows.jsonl", "text"),
                           folder / "tokenizer.model", "rows")),
            expected);
  request_.data = folder / "rows.jsonl";
  request_.tokenizer = folder;
  request_.vocab = 500;
  request_.mode = "sequential";
  request_.seqlen = 8;
  Ids begin = expected[0];
  begin.resize(8);
  const Ids ids = load_tokens(request_).ids;
  EXPECT_EQ(Ids(ids.begin(), ids.begin() + 8), begin);

  fs::create_directories(folder_ / "model");
  write("model/tokenizer.model", "no model");
  request_.tokenizer = folder_ / "model";
  expect_fault(request_, ExitCode::data,
               {"tokenizer.model is not a model that the package sentencepiece can read",
                "restore the model's original file"});
}

// The file's texts have the tokenizer's special tokens, its chats those of the template alone.
TEST_F(TextTest, TextsAndChatsKeepTheirOrder) {
  fs::create_directories(folder_ / "model");
  fs::copy(golden / "tokenizer/with_bos/tokenizer.json", folder_ / "model");
  write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}</s>{% endfor %}");
  const std::string chat = R"("messages": [{"role": "user", "content": "the man"}])";
  const auto ids = split(
      tokenize(read_documents(write("a.jsonl", R"({"text": "the man"})"
                                               "\n{" +
                                                   chat + "}\n" +
                                                   R"({"prompt": "the ", "completion": "man"})"
                                                   "\n"),
                              "text"),
               folder_ / "model/tokenizer.json", "a.jsonl"));
  ASSERT_EQ(ids.size(), 3u);
  Ids text = ids[0];
  EXPECT_EQ(text.front(), 1);
  EXPECT_EQ(ids[2], text);
  text.erase(text.begin());
  text.push_back(2);
  EXPECT_EQ(ids[1], text);
}

TEST_F(TextTest, ManyDocumentsKeepTheirOrder) {
  const auto documents = read_documents(request_.data, "text");
  const auto expected = golden_ids("ids.json");
  std::vector<Document> many;
  for (int i = 0; i < 2500; ++i)
    many.push_back(documents[static_cast<std::size_t>(i) % documents.size()]);
  const auto ids = split(tokenize(many, golden / "tokenizer/tokenizer.json", "text"));
  ASSERT_EQ(ids.size(), many.size());
  for (std::size_t i = 0; i < many.size(); ++i)
    ASSERT_EQ(ids[i], expected[i % expected.size()]) << i;
}

TEST_F(TextTest, SequentialJoinsDocumentsWithEos) {
  const Ids all = joined(golden_ids("ids.json"));
  request_.mode = "sequential";
  request_.seqlen = 16;
  const Tokens tokens = load_tokens(request_);
  ASSERT_EQ(tokens.samples, static_cast<std::int64_t>(all.size() / 16));
  ASSERT_GT(tokens.samples, 4);
  EXPECT_EQ(tokens.ids, Ids(all.begin(), all.begin() + tokens.samples * 16));
  request_.samples = 2;
  EXPECT_EQ(load_tokens(request_).ids, Ids(all.begin(), all.begin() + 32));
  request_.samples = tokens.samples + 1;
  expect_fault(request_, ExitCode::data,
               {"text.jsonl.gz", std::to_string(all.size()) + " tokens",
                std::to_string(request_.samples * 16) + " are needed"});
  request_.samples = 0;
  request_.seqlen = 100000;
  expect_fault(request_, ExitCode::data,
               {std::to_string(all.size()) + " tokens", "100000 are needed"});
}

TEST_F(TextTest, EosComesFromTheConfiguration) {
  fs::create_directories(folder_ / "model");
  fs::copy(golden / "tokenizer/tokenizer.json", folder_ / "model");
  request_.tokenizer = folder_ / "model";
  request_.mode = "sequential";
  request_.seqlen = 1;
  const auto documents = golden_ids("ids.json");
  const auto first = static_cast<std::ptrdiff_t>(documents[0].size());
  const auto separator = [&] {
    const Ids ids = load_tokens(request_).ids;
    return ids[static_cast<std::size_t>(first)];
  };
  EXPECT_EQ(separator(), documents[2][0]) << "no eos anywhere: none is put in";
  write("model/generation_config.json", R"({"eos_token_id": [9, 8]})");
  EXPECT_EQ(separator(), 9);
  write("model/config.json", R"({"eos_token_id": null, "text_config": {"eos_token_id": 11}})");
  EXPECT_EQ(separator(), 11);
  write("model/config.json", R"({"eos_token_id": 12})");
  EXPECT_EQ(separator(), 12);
  write("model/config.json", R"({"eos_token_id": 320})");
  expect_fault(request_, ExitCode::data, {"320"});
}

TEST_F(TextTest, WindowsAreCutFromTheJoinedText) {
  const Ids all = joined(golden_ids("ids.json"));
  request_.seqlen = 16;
  request_.samples = 20;
  request_.seed = 5;
  const Tokens tokens = load_tokens(request_);
  const auto starts = random_windows(static_cast<std::int64_t>(all.size()), 16, 20, 5);
  for (std::size_t sample = 0; sample < 20; ++sample)
    EXPECT_EQ(Ids(tokens.ids.begin() + sample * 16, tokens.ids.begin() + (sample + 1) * 16),
              Ids(all.begin() + starts[sample], all.begin() + starts[sample] + 16));
  EXPECT_EQ(load_tokens(request_).hash, tokens.hash);
  request_.seed = 6;
  EXPECT_NE(load_tokens(request_).hash, tokens.hash);
  request_.seqlen = static_cast<std::int64_t>(all.size()) + 1;
  expect_fault(
      request_, ExitCode::data,
      {std::to_string(all.size()) + " tokens", std::to_string(all.size() + 1) + " are needed"});
  request_.samples = 0;
  expect_fault(request_, ExitCode::config, {"samples"});
}

TEST_F(TextTest, DocumentsGiveTheirFirstTokens) {
  const auto documents = golden_ids("ids.json");
  std::set<Ids> beginnings;
  for (const Ids& document : documents)
    if (document.size() >= 16) beginnings.emplace(document.begin(), document.begin() + 16);
  ASSERT_GT(beginnings.size(), 2u);
  ASSERT_LT(beginnings.size(), documents.size());
  request_.mode = "documents";
  request_.seqlen = 16;
  const Tokens tokens = load_tokens(request_);
  std::set<Ids> found;
  for (std::int64_t sample = 0; sample < tokens.samples; ++sample)
    found.emplace(tokens.ids.begin() + sample * 16, tokens.ids.begin() + (sample + 1) * 16);
  EXPECT_EQ(found, beginnings);
  EXPECT_EQ(tokens.samples, static_cast<std::int64_t>(beginnings.size()));
  request_.samples = tokens.samples + 1;
  expect_fault(request_, ExitCode::data,
               {std::to_string(beginnings.size()) + " of 6 documents",
                std::to_string(request_.samples) + " are needed"});
}

TEST_F(TextTest, CacheIsUsedCheckedAndRemade) {
  request_.data = write("a.txt", "the man and the book of the man");
  request_.mode = "sequential";
  request_.seqlen = 4;
  const Tokens tokens = load_tokens(request_);
  ASSERT_EQ(cache_entries().size(), 1u);
  const fs::path entry = cache_entries()[0];
  const std::string bytes = read_all(entry);

  // A Python that does not run proves that the cache answers.
  const char* python = std::getenv("QPIPE_PYTHON");
  const std::string before = python == nullptr ? "" : python;
  setenv("QPIPE_PYTHON", "/nonexistent/python", 1);
  EXPECT_EQ(load_tokens(request_).ids, tokens.ids);
  std::string damaged = bytes;
  damaged[damaged.size() - 3] = static_cast<char>(damaged[damaged.size() - 3] ^ 1);
  std::ofstream(entry, std::ios::binary) << damaged;
  logged([&] {
    expect_fault(request_, ExitCode::unavailable, {"/nonexistent/python", "QPIPE_PYTHON"});
  });
  if (python == nullptr)
    unsetenv("QPIPE_PYTHON");
  else
    setenv("QPIPE_PYTHON", before.c_str(), 1);

  for (const std::string& contents :
       {damaged, bytes.substr(0, 50), bytes.substr(0, 10), std::string()}) {
    std::ofstream(entry, std::ios::binary) << contents;
    const std::string said = logged([&] { EXPECT_EQ(load_tokens(request_).ids, tokens.ids); });
    EXPECT_NE(said.find("damaged"), std::string::npos) << said;
    EXPECT_EQ(read_all(entry), bytes);
  }

  // Another text, tokenizer or field is another entry.
  write("a.txt", "the men and the book of the man");
  EXPECT_NE(load_tokens(request_).ids, tokens.ids);
  request_.tokenizer = golden / "tokenizer/with_bos";
  EXPECT_EQ(load_tokens(request_).ids[0], 1);
  request_.text_field = "body";
  load_tokens(request_);
  EXPECT_EQ(cache_entries().size(), 4u);
}

// Each part is what it is alone, with its share of the samples; one that comes to none is not read.
TEST_F(TextTest, MixesTakeEachPartsShare) {
  request_.seqlen = 8;
  request_.seed = 3;
  MixPart text{request_, 3.0};
  MixPart ids{h5py_request("as_int32"), 1.0};
  ids.request.seqlen = 8;
  MixPart none{request_, 1e-6};
  none.request.data = "absent.txt";
  const Tokens mixed = load_mix({text, ids, none}, 8);
  request_.samples = 6;
  const Tokens windows = load_tokens(request_);
  ids.request.samples = 2;
  const Tokens first = load_tokens(ids.request);
  Ids expected = windows.ids;
  expected.insert(expected.end(), first.ids.begin(), first.ids.end());
  EXPECT_EQ(mixed.ids, expected);
  EXPECT_EQ(mixed.samples, 8);
  EXPECT_EQ(mixed.seqlen, 8);
  EXPECT_EQ(mixed.source, windows.source + "; " + first.source);
  EXPECT_NE(mixed.hash, windows.hash);
  const Tokens alone = load_mix({text}, 6);
  EXPECT_EQ(alone.ids, windows.ids);
  EXPECT_EQ(alone.hash, windows.hash);
}

// A FIFO would be waited for, a folder cannot be read, a device has no end.
TEST_F(TextTest, CacheEntriesThatAreNoFilesAreMadeAgain) {
  request_.mode = "sequential";
  request_.seqlen = 4;
  const Tokens tokens = load_tokens(request_);
  const fs::path entry = cache_entries()[0];
  const auto expect_made_again = [&](const char* fault) {
    const std::string said = logged([&] { EXPECT_EQ(load_tokens(request_).ids, tokens.ids); });
    EXPECT_NE(said.find(fault), std::string::npos) << said;
    fs::remove_all(entry);
  };
  fs::remove(entry);
  ASSERT_EQ(mkfifo(entry.c_str(), 0600), 0);
  expect_made_again("FIFO");
  fs::create_directory(entry);
  write("cache/" + entry.filename().string() + "/file", "x");
  expect_made_again("folder");
  fs::create_symlink("/dev/zero", entry);
  expect_made_again("link");
  write("cache/" + entry.filename().string(), "");
  fs::resize_file(entry, std::uintmax_t{1} << 42);
  expect_made_again("memory");
}

TEST_F(DatasetTest, SizesBeyondAllUseAreRefused) {
  DatasetRequest request = h5py_request("as_int32");
  request.samples = std::numeric_limits<std::int64_t>::max();
  expect_fault(request, ExitCode::config, {"9223372036854775807", "16777216 samples"});
  request.samples = 1 << 24;
  request.seqlen = 1 << 20;
  expect_fault(request, ExitCode::config, {"68719476736 tokens"});
  request.samples = 1 << 22;
  request.seqlen = 1 << 14;  // 256 GiB of ids
  if (sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) < std::int64_t{1} << 39)
    expect_fault(request, ExitCode::config, {"memory"});
}

TEST_F(TextTest, CacheEntriesOfOthersAreNotBelieved) {
  request_.data = write("a.txt", "the man and the book of the man");
  request_.mode = "sequential";
  request_.seqlen = 4;
  const Tokens tokens = load_tokens(request_);
  const fs::path entry = cache_entries().at(0);
  const auto expect_made_again = [&](const std::string& reason) {
    const std::string said = logged([&] { EXPECT_EQ(load_tokens(request_).ids, tokens.ids); });
    EXPECT_NE(said.find(reason), std::string::npos) << said;
  };
  for (const mode_t mode : {0666, 0664, 0622}) {
    ASSERT_EQ(chmod(entry.c_str(), mode), 0);
    expect_made_again("others may have written them");
    EXPECT_EQ(logged([&] { load_tokens(request_); }), "");  // as it was made now
  }
  if (geteuid() == 0) {
    ASSERT_EQ(chown(entry.c_str(), 65534, 65534), 0);
    expect_made_again("others may have written them");
  }
  fs::rename(entry, folder_ / "elsewhere");
  fs::create_symlink(folder_ / "elsewhere", entry);
  expect_made_again("are not used");
  fs::remove(entry);
  ASSERT_EQ(mkfifo(entry.c_str(), 0600), 0);
  expect_made_again("is a FIFO");  // at once
}

TEST_F(TextTest, UnwritableCacheIsAWarning) {
  request_.cache =
      write("file", "x") / fs::path("cache");  // a folder below a file: not even root can make it
  request_.mode = "sequential";
  request_.seqlen = 4;
  const std::string said = logged([&] { EXPECT_GT(load_tokens(request_).samples, 0); });
  EXPECT_NE(said.find("cannot keep"), std::string::npos) << said;
}

TEST_F(TextTest, CacheFolderOfTheUser) {
  request_.cache.clear();
  request_.mode = "sequential";
  request_.seqlen = 4;
  const char* set = std::getenv("XDG_CACHE_HOME");
  const std::string before = set == nullptr ? "" : set;
  setenv("XDG_CACHE_HOME", folder_.c_str(), 1);
  load_tokens(request_);
  if (set == nullptr)
    unsetenv("XDG_CACHE_HOME");
  else
    setenv("XDG_CACHE_HOME", before.c_str(), 1);
  EXPECT_FALSE(fs::is_empty(folder_ / "qpipe"));
}

TEST_F(TextTest, TokenizerFaults) {
  request_.mode = "sequential";
  request_.seqlen = 4;
  request_.data = write("latin1.txt", "caf\xE9");
  expect_fault(request_, ExitCode::data, {"latin1.txt", "document 1 is not UTF-8 at byte 3"});
  request_.data = write("empty.txt", "");
  expect_fault(request_, ExitCode::data, {"empty.txt", "0 tokens", "4 are needed"});
  request_.mode = "random";
  expect_fault(request_, ExitCode::config, {"random", "windows, documents or sequential"});
  request_.mode = "windows";
  request_.seqlen = 0;
  expect_fault(request_, ExitCode::config, {"seqlen"});
  request_.seqlen = 4;
  fs::create_directories(folder_ / "model");
  request_.tokenizer = folder_ / "model";
  expect_fault(request_, ExitCode::no_input, {"tokenizer.json", "empty.txt"});
  write("model/tokenizer.json", "{}");
  expect_fault(request_, ExitCode::data, {"tokenizer.json", "not a tokenizer"});
}

// 48 windows of 512 tokens spread evenly over the novel, cut by another program from ids of the
// same tokenizer.
TEST_F(TextTest, RealTextGivesTheReferenceTokens) {
  const fs::path oracle = shared_folder() / "oracles/smollm2";
  if (!fs::exists(oracle)) GTEST_SKIP() << "needs the oracles";
  DatasetRequest reference_request;
  reference_request.data = oracle / "tokens.safetensors";
  reference_request.dataset = "eval";
  reference_request.vocab = 49152;
  const Tokens reference = load_tokens(reference_request);
  ASSERT_EQ(reference.samples, 48);
  ASSERT_EQ(reference.seqlen, 512);

  request_.data = tests_folder().parent_path() / "data/persuasion.txt.gz";
  request_.tokenizer = oracle;
  request_.vocab = 49152;
  request_.mode = "sequential";
  request_.seqlen = 1;
  const Ids ids = load_tokens(request_).ids;
  ASSERT_EQ(ids.size(), 115862u);
  const std::size_t stride = ids.size() / 48;
  for (std::size_t sample = 0; sample < 48; ++sample)
    EXPECT_TRUE(std::equal(ids.begin() + sample * stride, ids.begin() + sample * stride + 512,
                           reference.ids.begin() + sample * 512))
        << sample;
}

TEST(TokenizedText, BytesRoundTripAndLiesAreSeen) {
  const TokenizedText text{{2, 0, 1}, {5, 6, 7}};
  const std::string bytes = to_bytes(text);
  EXPECT_EQ(bytes.size(), 8u + 24u + 12u);
  EXPECT_EQ(from_bytes(bytes)->ids, text.ids);
  EXPECT_EQ(from_bytes(bytes)->counts, text.counts);
  EXPECT_TRUE(from_bytes(to_bytes({}))->ids.empty());
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(from_bytes(bytes.substr(0, size))) << size;
  EXPECT_FALSE(from_bytes(bytes + "x"));
  for (const std::int64_t count : {std::int64_t{-1}, std::int64_t{3}, std::int64_t{1} << 62,
                                   std::numeric_limits<std::int64_t>::max()}) {
    EXPECT_FALSE(from_bytes(to_bytes({{count, 0, 1}, {5, 6, 7}}))) << count;
  }
  std::string many = bytes;
  many[7] = '\x7f';
  EXPECT_FALSE(from_bytes(many));
}

}  // namespace
}  // namespace qpipe
