#include "pipeline/data/text_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>

#include "pipeline/data/unpacked_limit.h"
#include "pipeline/files/error.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

class TextFileTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qpipe-text-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& contents) const {
    std::ofstream(folder_ / name, std::ios::binary) << contents;
    return folder_ / name;
  }
  static std::string fault(const fs::path& path, ExitCode code = ExitCode::data) {
    try {
      read_documents(path, "text");
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, code) << error.what();
      return error.what();
    }
    return "";
  }
  static void expect_fault(const fs::path& path, const std::vector<std::string>& parts,
                           ExitCode code = ExitCode::data) {
    const std::string message = fault(path, code);
    for (const std::string& part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks: " << part;
  }

  fs::path folder_;
};

// As json.dumps writes it and json.loads reads it.
TEST_F(TextFileTest, LinesAreJsonAsPythonReadsIt) {
  const auto documents =
      read_documents(write("a.jsonl",
                           "{\"text\": \"one\", \"score\": NaN}\n"
                           "{\"score\": [-Infinity, 1e999], \"text\": \"NaN\"}\n"
                           "{\"text\": \"first\", \"text\": \"last\", \"other\": \"\\ud83d\"}\n"),
                     "text");
  EXPECT_EQ(documents, (std::vector<Document>{{"one"}, {"NaN"}, {"last"}}));
  expect_fault(write("a.jsonl", "{\"text\": \"x\"}\n{\"text\": NaN}\n"),
               {"a.jsonl:2", "field \"text\" is NaN, not a string"});
}

// A row is handed on as it is written, with its line.
TEST_F(TextFileTest, ChatsAndPairsAreRows) {
  const std::string chat = R"([{"role": "user", "content": "hello"}])";
  const std::vector<std::string> rows{
      R"({"messages": )" + chat + "}", R"({"conversations": )" + chat + R"(, "text": null})",
      R"({"text": )" + chat + "}",     R"({"prompt": "a", "completion": "b"})",
      R"({"messages": []})",
  };
  std::string lines = "{\"text\": \"plain\", \"messages\": " + chat + "}\n\n";
  for (const std::string& row : rows) lines += row + "\n";
  const std::vector<Document> documents = read_documents(write("a.jsonl", lines), "text");
  ASSERT_EQ(documents.size(), 6u);
  EXPECT_EQ(documents[0], Document("plain"));
  for (std::size_t i = 0; i < rows.size(); ++i)
    EXPECT_EQ(documents[i + 1], Document(rows[i], static_cast<std::int64_t>(i) + 3));
  EXPECT_EQ(read_documents(write("a.json", R"({"turns": )" + chat + "}"), "turns"),
            (std::vector<Document>{{R"({"turns": )" + chat + "}", 1}}));
}

TEST_F(TextFileTest, RowsWithoutTheFieldsAreCounted) {
  std::string lines;
  for (int row = 1; row <= 30; ++row)
    lines += row % 2 == 0 ? "{\"text\": \"x\"}\n" : "{\"n\": 1, \"body\": \"x\"}\n";
  EXPECT_EQ(fault(write("a.jsonl", lines)),
            (folder_ / "a.jsonl").string() +
                ":1: has no field \"text\", nor messages, conversations, or prompt with completion "
                "(as 15 of 30 rows: also 3, 5, 7, 9, 11, 13, 15, 17, 19, ...); set text_field to "
                "one of: \"body\"");
  EXPECT_EQ(fault(write("a.jsonl", "{\"text\": \"x\"}\n{\"text\": null, \"prompt\": []}\n")),
            (folder_ / "a.jsonl").string() +
                ":2: has no field \"text\", nor messages, conversations, or prompt with "
                "completion; no other field holds a string: remove such rows");
}

TEST_F(TextFileTest, WhatUnpacksToTooMuchIsRefused) {
  const fs::path path = folder_ / "a.txt.gz";
  const std::string zeros(8 << 20, '\0');
  gzFile file = gzopen((folder_ / "member").c_str(), "wb9");
  gzwrite(file, zeros.data(), static_cast<unsigned>(zeros.size()));
  gzclose(file);
  std::ifstream member(folder_ / "member", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(member), {}};
  {
    std::ofstream members(path, std::ios::binary);
    for (int i = 0; i < 130; ++i) members << bytes;
  }
  const auto packed = static_cast<std::int64_t>(fs::file_size(path));
  ASSERT_LT(64 * packed, std::int64_t{1} << 30);
  expect_fault(path, {"a.txt.gz: unpacks to more than 1073741824 bytes of text, from " +
                          std::to_string(packed) + " bytes",
                      "cut it"});
}

TEST(UnpackedLimit, IsARatioBeyondAGibibyte) {
  constexpr std::int64_t gibibyte = std::int64_t{1} << 30;
  EXPECT_EQ(most_unpacked_bytes(0), gibibyte);
  EXPECT_EQ(most_unpacked_bytes(gibibyte / 64), gibibyte);
  EXPECT_EQ(most_unpacked_bytes(gibibyte), 64 * gibibyte);
  EXPECT_GT(most_unpacked_bytes(std::int64_t{1} << 62), 0);
}

TEST_F(TextFileTest, WhatIsNoRegularFileIsRefusedAtOnce) {
  for (const char* name : {"fifo.txt", "fifo.jsonl", "fifo.txt.gz"}) {
    ASSERT_EQ(mkfifo((folder_ / name).c_str(), 0600), 0);
    expect_fault(folder_ / name, {name, "FIFO"}, ExitCode::no_input);
  }
  fs::create_symlink("/dev/zero", folder_ / "zero.txt");
  expect_fault(folder_ / "zero.txt", {"zero.txt", "device"}, ExitCode::no_input);
  fs::create_directory(folder_ / "folder.txt.gz");
  expect_fault(folder_ / "folder.txt.gz", {"folder"}, ExitCode::no_input);
}

// A sparse file: no byte of it is read.
TEST_F(TextFileTest, TextBeyondMemoryIsRefused) {
  const fs::path path = write("a.txt", "x");
  fs::resize_file(path, std::uintmax_t{1} << 42);
  expect_fault(path, {"a.txt: has 4398046511104 bytes", "memory"});
}

TEST_F(TextFileTest, LinesAreBounded) {
  const fs::path path = write("a.jsonl", "{\"text\": \"x\"}\n{\"text\": \"");
  std::ofstream(path, std::ios::app) << std::string(100'000'001, 'x') << "\"}\n";
  expect_fault(path, {"a.jsonl:2", "100000013 bytes", "limit 100000000"});
}

}  // namespace
}  // namespace qpipe
