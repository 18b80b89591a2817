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
  EXPECT_EQ(documents, (std::vector<std::string>{"one", "NaN", "last"}));
  expect_fault(write("a.jsonl", "{\"text\": \"x\"}\n{\"text\": NaN}\n"),
               {"a.jsonl:2", "field \"text\" is NaN, not a string"});
}

TEST_F(TextFileTest, ChatsAreToldHowToBecomeText) {
  const std::string chat = "[{\"role\": \"user\", \"content\": \"hello\"}]";
  for (const char* field : {"messages", "text", "conversations"}) {
    const std::string quoted = std::string("\"") + field + "\"";
    const fs::path path = write("a.jsonl", "{" + quoted + ": " + chat + "}\n");
    expect_fault(path, {"a.jsonl:1", "field " + quoted + " is a list of messages",
                        "apply_chat_template(row[" + quoted + "]"});
    EXPECT_EQ(fault(path).find("set text_field"), std::string::npos) << fault(path);
  }
  // A field that would be refused next is no advice; one that holds a text is.
  expect_fault(write("a.jsonl", "{\"messages\": " + chat + ", \"prompt\": \"hello\", \"n\": 1}\n"),
               {"apply_chat_template", "set text_field to one of: \"prompt\""});
  expect_fault(write("a.jsonl", "{\"n\": 1, \"list\": [\"a\"]}\n"),
               {"has no field \"text\" and no other with a string"});
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
