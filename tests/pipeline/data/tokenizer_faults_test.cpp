// What tokenizer.json, the Python and the machine can do to the tokenizer's process.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "launch/signals.h"
#include "pipeline/data/tokenizer.h"
#include "pipeline/files/error.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path golden = tests_folder() / "golden/tokenizer/tokenizer.json";
const std::vector<Document> documents(
    200, std::string("the man and the book of the man, a single man\n"));

// The variable as it was, at the end.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    setenv(name, value.c_str(), 1);
  }
  ~Variable() { before_ ? setenv(name_, before_->c_str(), 1) : unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

std::string fault(const fs::path& tokenizer_json, ExitCode code) {
  try {
    tokenize(documents, tokenizer_json, "text.txt");
  } catch (const UserError& error) {
    EXPECT_EQ(error.code, code) << error.what();
    EXPECT_TRUE(std::string(error.what()).starts_with("text.txt: cannot be tokenized: "))
        << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no fault";
  return "";
}

class TokenizerFaultsTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qpipe-tokenizer-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path script(const std::string& text) const {
    const fs::path path = folder_ / "python";
    std::ofstream(path) << "#!/bin/sh\n" << text << "\n";
    fs::permissions(path, fs::perms::owner_all);
    return path;
  }

  fs::path folder_;
};

// The golden tokenizer with some keys changed; needs a Python with the package tokenizers.
class TokenizerJsonTest : public TokenizerFaultsTest {
 protected:
  void SetUp() override {
    TokenizerFaultsTest::SetUp();
    try {
      tokenize({}, golden, "nothing");
    } catch (const UserError& error) {
      if (std::getenv("QPIPE_PYTHON") == nullptr && error.code == ExitCode::unavailable)
        GTEST_SKIP() << "no Python with the package tokenizers; set QPIPE_PYTHON";
    }
  }
  void expect_at_fault(const json& changes) const {
    json tokenizer = json::parse(std::ifstream(golden));
    tokenizer.update(changes);
    const fs::path path = folder_ / "tokenizer.json";
    std::ofstream(path) << tokenizer;
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_NE(fault(path, ExitCode::data).find("tokenizer.json"), std::string::npos);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(120));
  }
};

TEST_F(TokenizerJsonTest, TheFileIsAtFault) {
  json model = json::parse(std::ifstream(golden))["model"];
  for (const std::int64_t id : {std::int64_t{1} << 31, std::int64_t{1} << 33, std::int64_t{-1}}) {
    json changed = model;
    for (auto& [token, value] : changed["vocab"].items()) value = id;
    expect_at_fault({{"model", changed}});
  }
  expect_at_fault({{"post_processor",
                    {{"type", "TemplateProcessing"},
                     {"single", {{{"SpecialToken", {{"id", "X"}, {"type_id", 0}}}}}},
                     {"pair", json::array()},
                     {"special_tokens", json::object()}}}});
  expect_at_fault({{"model",
                    {{"type", "Unigram"},
                     {"unk_id", nullptr},
                     {"vocab", {{"q", -1.0}}},
                     {"byte_fallback", false}}}});
  expect_at_fault(
      {{"normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "AAAAAAAA"}}}});
  expect_at_fault({{"pre_tokenizer",
                    {{"type", "Split"},
                     {"pattern", {{"Regex", "(([a-z ]+)+)+!"}}},
                     {"behavior", "Isolated"},
                     {"invert", false}}}});
}

// Each character becomes megabytes: time and memory have an end.
TEST_F(TokenizerJsonTest, ExplosionsEnd) {
  expect_at_fault({{"normalizer",
                    {{"type", "Replace"},
                     {"pattern", {{"String", "a"}}},
                     {"content", std::string(1 << 20, 'b')}}}});
}

// What a chat's row or its template can do: one line that names the row.
class ChatFaultsTest : public TokenizerJsonTest {
 protected:
  std::string said(const std::string& chat_template, const std::string& row,
                   const std::string& source = "chats.jsonl") const {
    fs::copy_file(golden, folder_ / "tokenizer.json", fs::copy_options::overwrite_existing);
    if (!chat_template.empty()) std::ofstream(folder_ / "chat_template.jinja") << chat_template;
    try {
      tokenize({Document("the man"), Document(row, 7)}, folder_ / "tokenizer.json", source);
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::data) << error.what();
      return error.what();
    }
    return "";
  }
  static std::string chat(const std::string& role) {
    return json{{"messages", {{{"role", role}, {"content", "hello"}}}}}.dump();
  }
};

TEST_F(ChatFaultsTest, AreOneLineThatNamesTheRow) {
  const auto template_path = (folder_ / "chat_template.jinja").string();
  EXPECT_EQ(said("", chat("user")),
            "chats.jsonl: cannot be tokenized: the rows are chats, and " + folder_.string() +
                " has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json); add the model's, or give text");
  EXPECT_EQ(said("{{ messages[0].role }}", chat("narrator")),
            "chats.jsonl:7: message 1 has the role \"narrator\", which the model's chat template "
            "does not know; use one of system, developer, user, assistant, tool, function, or "
            "remove the row");
  EXPECT_EQ(said("{% if messages[0].role == 'narrator' %}x{% endif %}", chat("narrator")), "");
  EXPECT_EQ(said("{{ raise_exception('roles must\nalternate') }}", chat("user")),
            "chats.jsonl:7: the model's chat template refuses it (TemplateError: roles must "
            "alternate); mend the row or remove it");
  EXPECT_EQ(said("{% if %}", chat("user")),
            "chats.jsonl: cannot be tokenized: " + template_path +
                " has a chat template that Jinja cannot read (template default line 1: Expected an "
                "expression, got 'end of statement block'); restore the model's original file");
  EXPECT_EQ(said("x", R"({"messages": []})"),
            "chats.jsonl:7: the chat has no messages; remove the row");
  EXPECT_EQ(said("x", R"({"messages": [{"content": "x"}]})", "chats.parquet.zst"),
            "chats.parquet.zst: row 7: message 1 has neither role and content nor from and value; "
            "mend the row or remove it");
  EXPECT_EQ(said("x", R"({"prompt": "x", "completion": 1})"),
            "chats.jsonl:7: prompt and completion must both be strings or both lists of messages; "
            "mend the row or remove it");
  EXPECT_EQ(said("x", R"({"messages": [{"role": "user"}], "tools": "{"})"),
            "chats.jsonl:7: tools is no list of JSON schemas; mend the row or remove it");
}

// Templates are programs of strangers.
TEST_F(ChatFaultsTest, TemplatesCanDoNothingElse) {
  for (const char* escape :
       {"{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}", "{{ messages.append(1) }}",
        "{{ namespace(__init__=1) }}", "{{ dict.fromkeys.__func__.__globals__ }}"})
    EXPECT_NE(said(escape, chat("user")).find("SecurityError"), std::string::npos) << escape;
  EXPECT_NE(said("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                 chat("user"))
                .find("chats.jsonl:7: the model's chat template refuses it (TimeoutError: it does "
                      "not come to an end in 10 s)"),
            std::string::npos);
  EXPECT_NE(said("{{ 'a' * 10 ** 15 }}", chat("user")).find("MemoryError"), std::string::npos);
}

// Modules of the current folder and of PYTHONPATH are not loaded.
TEST_F(TokenizerJsonTest, NothingElseIsExecuted) {
  const TokenizedText expected = tokenize(documents, golden, "text.txt");
  for (const char* module : {"tokenizers", "array", "struct", "codecs", "signal", "resource"})
    std::ofstream(folder_ / (std::string(module) + ".py"))
        << "open('" << (folder_ / "executed").string() << "', 'w')\nraise SystemExit(3)\n";
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  const Variable path("PYTHONPATH", folder_.string() + ":");
  const Variable home("PYTHONHOME", "/nonexistent");
  EXPECT_EQ(tokenize(documents, golden, "text.txt").ids, expected.ids);
  EXPECT_FALSE(fs::exists(folder_ / "executed"));
  fs::current_path(before);
}

TEST_F(TokenizerFaultsTest, APythonThatIsNoneIsToldOf) {
  const auto with = [&](const std::string& text, ExitCode code) {
    const Variable python("QPIPE_PYTHON", script(text).string());
    return fault(golden, code);
  };
  EXPECT_NE(with("echo hello", ExitCode::unavailable).find("QPIPE_PYTHON"), std::string::npos);
  EXPECT_NE(with("echo broken >&2; exit 1", ExitCode::unavailable)
                .find("exit status 1 (broken); set QPIPE_PYTHON"),
            std::string::npos);
  EXPECT_NE(with("exec yes", ExitCode::data).find("many more tokens"), std::string::npos);
  EXPECT_NE(with("kill -SEGV $$", ExitCode::data).find("crashed"), std::string::npos);
  EXPECT_NE(with("kill -PROF $$", ExitCode::data).find("hundred times as long"), std::string::npos);
  EXPECT_NE(with("kill -KILL $$", ExitCode::os).find("memory"), std::string::npos);
}

// A Python without the package: one line that says how to get it.
TEST_F(TokenizerFaultsTest, MissingPackageSaysHowToInstall) {
  const Variable python("QPIPE_PYTHON", script("exec python3 -S \"$@\"").string());
  EXPECT_NE(fault(golden, ExitCode::unavailable).find("-m pip install tokenizers"),
            std::string::npos);
}

// The run ends at once, and the tokenizer with it.
TEST_F(TokenizerFaultsTest, AStopSignalEndsTheTokenizerToo) {
  const fs::path id = folder_ / "id";
  const Variable python("QPIPE_PYTHON",
                        script("echo $$ > " + id.string() + "; exec sleep 1000").string());
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        count_stop_signals();
        std::thread sender([&] {
          while (!fs::exists(id)) std::this_thread::sleep_for(std::chrono::milliseconds(20));
          std::this_thread::sleep_for(std::chrono::milliseconds(100));
          kill(getpid(), SIGINT);
        });
        try {
          tokenize(documents, golden, "text.txt");
        } catch (const UserError& error) {
          sender.join();
          pid_t child = 0;
          std::ifstream(id) >> child;
          // Ended and waited for.
          std::exit(child > 0 && kill(child, 0) != 0 ? static_cast<int>(error.code) : 2);
        }
        std::exit(1);
      },
      testing::ExitedWithCode(75), "");
}

}  // namespace
}  // namespace qpipe
