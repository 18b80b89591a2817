#include "pipeline/options/options.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <type_traits>

#include "pipeline/files/error.h"
#include "pipeline/files/suggest.h"
#include "pipeline/options/options_visit.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

class OptionsTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qpipe-options-" + std::to_string(getpid()));
    fs::create_directories(folder_ / "model");
    std::ofstream(folder_ / "calib.h5") << "x";
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& text) const {
    const fs::path path = folder_ / "run.toml";
    std::ofstream(path) << text;
    return path;
  }
  // A complete configuration: lines 1 to 6; [quantize] is line 7 and `quantize` starts at line 8.
  std::string complete(const std::string& quantize) const {
    return "[model]\npath = \"" + (folder_ / "model").string() + "\"\n[calibration]\ndata = \"" +
           (folder_ / "calib.h5").string() + "\"\n[output]\npath = \"" +
           (folder_ / "out").string() + "\"\n[quantize]\n" + quantize;
  }
  Options load(const std::string& quantize, const std::vector<std::string>& sets = {}) const {
    return load_options(write(complete(quantize)), sets);
  }

  // The message must start with the file's path and `where` (":LINE: …") and contain `parts`.
  void expect_fault(const std::string& text, const std::vector<std::string>& sets, ExitCode code,
                    const std::string& start, const std::vector<std::string>& parts) const {
    const fs::path path = write(text);
    try {
      load_options(path, sets);
      ADD_FAILURE() << "accepted: " << text;
    } catch (const UserError& error) {
      const std::string message = error.what();
      EXPECT_EQ(error.code, code) << message;
      const std::string expected = start.starts_with(":") ? path.string() + start : start;
      EXPECT_TRUE(message.starts_with(expected)) << message << "\nexpected start: " << expected;
      for (const std::string& part : parts)
        EXPECT_NE(message.find(part), std::string::npos) << message << "\nexpected part: " << part;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
  }
  void quantize_fault(const std::string& quantize, const std::string& start,
                      const std::vector<std::string>& parts) const {
    expect_fault(complete(quantize), {}, ExitCode::config, start, parts);
  }
  void set_fault(const std::string& set, const std::string& start,
                 const std::vector<std::string>& parts) const {
    expect_fault(complete(""), {set}, ExitCode::config, start, parts);
  }

  fs::path folder_;
};

TEST_F(OptionsTest, ReadsEveryTypeAndKeepsDefaults) {
  const Options o = load(R"(
bits = 3
group_size = -1
symmetric = false
damp_percent = 0.05
mse = 2
propagate = "original"
[[quantize.overrides]]
match = "down_proj"
bits = 8
symmetric = true
[[quantize.overrides]]
match = 'layers\.0\.'
skip = true
[parallel]
timeout = 30
)");
  EXPECT_EQ(o.quantize.bits, 3);
  EXPECT_EQ(o.quantize.group_size, -1);
  EXPECT_FALSE(o.quantize.symmetric);
  EXPECT_EQ(o.quantize.damp_percent, 0.05);
  EXPECT_EQ(o.quantize.mse, 2.0);
  EXPECT_EQ(o.quantize.propagate, "original");
  EXPECT_EQ(o.parallel.timeout, 30);
  ASSERT_EQ(o.quantize.overrides.size(), 2U);
  EXPECT_EQ(o.quantize.overrides[0].match, "down_proj");
  EXPECT_EQ(o.quantize.overrides[0].bits, 8);
  EXPECT_EQ(o.quantize.overrides[0].group_size, 0);
  EXPECT_EQ(o.quantize.overrides[0].symmetric, "true");
  EXPECT_FALSE(o.quantize.overrides[0].skip);
  EXPECT_EQ(o.quantize.overrides[1].match, "layers\\.0\\.");
  EXPECT_TRUE(o.quantize.overrides[1].skip);
  EXPECT_EQ(o.quantize.overrides[1].symmetric, "");
  EXPECT_EQ(o.calibration.samples, Options{}.calibration.samples);
  EXPECT_EQ(o.output.max_shard_size, "5GB");
}

TEST_F(OptionsTest, UnknownKeysAndSections) {
  quantize_fault("\ngroupsize = 64\n", ":9: unknown key quantize.groupsize",
                 {"did you mean quantize.group_size?"});
  quantize_fault("damp = 0.01\n", ":8: unknown key quantize.damp",
                 {"did you mean quantize.damp_percent?"});
  quantize_fault("samples = 64\n", ":8: unknown key quantize.samples",
                 {"did you mean calibration.samples?"});
  quantize_fault("wxyz = 64\n", ":8: unknown key quantize.wxyz",
                 {"[quantize] has method, bits, group_size"});
  quantize_fault("[quantise]\nbits = 4\n", ":8: unknown section [quantise]",
                 {"did you mean [quantize]?"});
  quantize_fault("[zzz]\nbits = 4\n", ":8: unknown section [zzz]",
                 {"known are [model], [calibration], [quantize]", "[evaluate]"});
  expect_fault("bits = 4\n" + complete(""), {}, ExitCode::config, ":1: bits",
               {"put it under [quantize]"});
  expect_fault("output = 4\n", {}, ExitCode::config, ":1: output = 4: expected a section",
               {"write [output]"});
  expect_fault("[[model]]\npath = 'x'\n", {}, ExitCode::config, ":1: model",
               {"expected a section", "write [model]"});
  quantize_fault("[quantize.bits]\nx = 1\n", ":8: quantize.bits",
                 {"expected an integer, found a table"});
  // Two faults: the one that comes first in the file is told.
  quantize_fault("zeta = 1\nalpha = 1\n", ":8: unknown key quantize.zeta", {});
}

TEST_F(OptionsTest, WrongTypes) {
  quantize_fault("bits = \"4\"\n", ":8: quantize.bits = \"4\": expected an integer, found a string",
                 {"write bits = 4 without quotes"});
  quantize_fault("bits = 4.0\n",
                 ":8: quantize.bits = 4.0: expected an integer, found a number with a fraction",
                 {});
  quantize_fault("bits = [4]\n", ":8: quantize.bits = [ 4 ]: expected an integer, found an array",
                 {});
  quantize_fault("bits = 1979-05-27\n",
                 ":8: quantize.bits = 1979-05-27: expected an integer, found a date", {});
  quantize_fault("symmetric = \"false\"\n",
                 ":8: quantize.symmetric = \"false\": expected true or false",
                 {"write symmetric = false without quotes"});
  quantize_fault("symmetric = 1\n",
                 ":8: quantize.symmetric = 1: expected true or false, found an integer", {});
  quantize_fault("method = 4\n", ":8: quantize.method = 4: expected a string, found an integer",
                 {"write it in quotes"});
  quantize_fault("damp_percent = true\n",
                 ":8: quantize.damp_percent = true: expected a number, found a boolean", {});
  quantize_fault("overrides = 3\n", ":8: quantize.overrides = 3: expected tables",
                 {"[[quantize.overrides]]"});
  quantize_fault("[quantize.overrides]\nmatch = 'a'\n", ":8: quantize.overrides",
                 {"[[quantize.overrides]]"});
}

TEST_F(OptionsTest, ImpossibleValues) {
  for (const int bits : {-4, 0, 1, 5, 6, 7, 9, 16})
    quantize_fault("bits = " + std::to_string(bits) + "\n",
                   ":8: quantize.bits = " + std::to_string(bits), {"must be one of 2, 3, 4, 8"});
  quantize_fault("\n\ngroup_size = 48\n", ":10: quantize.group_size = 48",
                 {"-1 or a multiple of 32", "the next one is 64"});
  quantize_fault("group_size = 0\n", ":8: quantize.group_size = 0", {"-1 or a multiple of 32"});
  quantize_fault("group_size = -128\n", ":8: quantize.group_size = -128",
                 {"-1 or a multiple of 32"});
  quantize_fault("damp_percent = 0\n", ":8: quantize.damp_percent = 0.0",
                 {"must be above 0 and below 1"});
  for (const std::string damp : {"1.0", "-0.01", "nan", "inf"})
    quantize_fault("damp_percent = " + damp + "\n", ":8: quantize.damp_percent",
                   {"must be above 0 and below 1"});
  quantize_fault("mse = -2.4\n", ":8: quantize.mse = -2.4", {"must be at least -1"});
  quantize_fault("mse = inf\n", ":8: quantize.mse", {"must be at least -1"});
  quantize_fault("method = \"gtpq\"\n", ":8: quantize.method = \"gtpq\"",
                 {"one of gptq, awq, rtn", "did you mean \"gptq\"?"});
  quantize_fault("method = \"nf4\"\n", ":8: quantize.method = \"nf4\"", {"one of gptq, awq, rtn"});
  quantize_fault("[parallel]\nbackend = \"gpu\"\n", ":9: parallel.backend = \"gpu\"",
                 {"one of auto, cpu, cuda"});
  quantize_fault("[run]\nprogress = \"\"\n", ":9: run.progress = \"\"",
                 {"one of auto, bar, plain, none"});
  quantize_fault("desc_act = true\nact_group_aware = true\n", ":9: quantize.act_group_aware = true",
                 {"quantize.desc_act"});
  quantize_fault("method = \"awq\"\ndesc_act = true\n", ":9: quantize.desc_act = true",
                 {"gptq's", "remove it"});
  quantize_fault("method = \"awq\"\nmse = 2.4\n", ":9: quantize.mse = 2.4", {"awq.clip"});
  quantize_fault("[awq]\ngrid = 0\n", ":9: awq.grid = 0", {"at least 1"});
  quantize_fault("[awq]\nsearch = \"fast\"\n", ":9: awq.search = \"fast\"", {"one of exact, gram"});
  quantize_fault("[awq]\nrounding = \"gtpq\"\n", ":9: awq.rounding", {"did you mean \"gptq\"?"});
  quantize_fault("[evaluate]\nseqlen = 1\n", ":9: evaluate.seqlen = 1", {"at least 2"});
  quantize_fault("[memory]\nmicro_batch = 0\n", ":9: memory.micro_batch = 0", {"at least 1"});
}

// Integers that a double does not hold, and what products of would overflow.
TEST_F(OptionsTest, NumbersBeyondAllUse) {
  const std::string most = std::to_string(std::numeric_limits<std::int64_t>::max());
  const std::string least = std::to_string(std::numeric_limits<std::int64_t>::min());
  for (const std::string& value : {std::string("9007199254740993"), most, least}) {
    set_fault("quantize.damp_percent=" + value,
              "--set quantize.damp_percent = ", {"above 0 and below 1"});
    set_fault("quantize.mse=" + value, "--set quantize.mse = ", {"must be at "});
  }
  set_fault("quantize.mse=nan", "--set quantize.mse = ", {"at least -1"});
  // Every option that is an integer or a number: none takes both ends of 64 bits, but for the seed.
  const Options defaults;
  int tried = 0;
  visit_options(
      defaults, [&](const std::string& key, const auto& value, auto&&, const char*, const char*) {
        using Value = std::remove_cvref_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, std::int64_t> || std::is_same_v<Value, double>) {
          ++tried;
          if (key != "calibration.seed")
            set_fault(key + "=" + most, "--set " + key + " = ", {"must be"});
          set_fault(key + "=" + least, "--set " + key + " = ", {"must be"});
          set_fault(key + "=9223372036854775808", "--set " + key + " = ", {"64 bits"});
          set_fault(key + "=nan", "--set " + key + " = ", {});
        }
      });
  EXPECT_GE(tried, 15);
  set_fault("quantize.group_size=1048608", "--set quantize.group_size", {"at most 1048576"});
  expect_fault(complete(""), {"calibration.samples=16777216", "calibration.seqlen=16777216"},
               ExitCode::config, "--set calibration.samples = 16777216",
               {"calibration.seqlen = 16777216", "more than 68719476736 tokens"});
  expect_fault(complete(""), {"evaluate.samples=16777216", "evaluate.seqlen=16777216"},
               ExitCode::config, "--set evaluate.samples", {"more than 68719476736 tokens"});
  for (const std::string size : {"99999999999999GiB", "9007199254740992", "0GB", "0"})
    for (const char* key : {"memory.gpu", "memory.host", "output.max_shard_size"})
      set_fault(key + ("=\"" + size + "\""), std::string("--set ") + key, {"a size such as"});
  // As long as a text may be: no recursion along it.
  set_fault("memory.gpu=" + std::string(100'000, '1'), "--set memory.gpu", {"a size such as"});
  set_fault("memory.gpu=" + std::string(100'000, '1') + "GiB", "--set memory.gpu", {});
}

TEST_F(OptionsTest, HostileFiles) {
  const std::string deep(100'000, '[');
  expect_fault("x = " + deep + "\n", {}, ExitCode::config, ":1: ", {});
  expect_fault("[" + deep + "\n", {}, ExitCode::config, ":1: ", {});
  expect_fault("x = " + std::string(100'000, '{') + "\n", {}, ExitCode::config, ":1: ", {});
  set_fault("quantize.bits=" + deep, "--set quantize.bits = ", {"expected an integer"});
  const auto expect_printable = [&](const std::string& text) {
    try {
      load_options(write(text), {});
      ADD_FAILURE() << "accepted";
    } catch (const UserError& error) {
      const std::string message = error.what();
      EXPECT_EQ(error.code, ExitCode::config) << message;
      EXPECT_LT(message.size(), 2000U);
      for (const char c : message) EXPECT_FALSE((c >= 0 && c < ' ') || c == '\x7f') << message;
    }
  };
  const std::string escape = "\\u001b[2J\\n\\u202e";
  expect_printable("[\"" + escape + "\"]\n");
  expect_printable("\"" + escape + "\" = 1\n");
  expect_printable("[quantize]\n\"" + escape + "\" = 1\n");
  expect_printable("[quantize]\nmethod = \"" + escape + "\"\n");
  expect_printable("[quantize]\nbits = \"" + escape + "\"\n");
  expect_printable("[[quantize.overrides]]\n\"" + escape + "\" = 1\n");
  expect_printable("[quantize]\nbits = \"" + std::string(1'000'000, 'x') + "\"\n");
  expect_printable("[" + std::string(1'000'000, 'x') + "]\n");
}

TEST_F(OptionsTest, OnlyRegularFilesOfSomeMegabytesAreRead) {
  const auto fault = [](const fs::path& path) {
    try {
      load_options(path, {});
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string("no fault");
  };
  ASSERT_EQ(mkfifo((folder_ / "fifo.toml").c_str(), 0600), 0);
  EXPECT_NE(fault(folder_ / "fifo.toml").find("FIFO"), std::string::npos);
  EXPECT_NE(fault("/dev/zero").find("device"), std::string::npos);
  const fs::path large = write("");
  fs::resize_file(large, std::uintmax_t{1} << 40);
  EXPECT_NE(fault(large).find("1099511627776 bytes"), std::string::npos) << fault(large);
}

TEST_F(OptionsTest, ByteSizes) {
  const std::string base = complete("");
  for (const std::string size : {"5GB", "500MB", "60KB", "1GiB"})
    EXPECT_EQ(load("", {"output.max_shard_size=" + size}).output.max_shard_size, size);
  for (const std::string size : {"", "GB", "5XB", "-5GB", "five"})
    expect_fault(base, {"output.max_shard_size=" + size}, ExitCode::config,
                 "--set output.max_shard_size = \"" + size + "\": ", {"5GB"});
  EXPECT_EQ(load("", {}).memory.gpu, "auto");
  EXPECT_EQ(load("", {"memory.gpu=22GiB", "memory.host=auto"}).memory.gpu, "22GiB");
  for (const std::string size : {"", "free", "-1GiB"})
    expect_fault(base, {"memory.host=" + size}, ExitCode::config,
                 "--set memory.host = \"" + size + "\": ", {"auto, or a size"});
}

TEST_F(OptionsTest, Overrides) {
  quantize_fault(
      "[[quantize.overrides]]\nmatch = 'a'\n[[quantize.overrides]]\nbits = 8\nmatch = "
      "'mlp.(down'\n",
      ":12: quantize.overrides[1].match = \"mlp.(down\": is no regular expression", {});
  quantize_fault("[[quantize.overrides]]\nmatch = 'a'\nbit = 8\n",
                 ":10: quantize.overrides[0]: unknown key bit", {"did you mean bits?"});
  quantize_fault("[[quantize.overrides]]\nmatch = 'a'\nzzzz = 8\n",
                 ":10: quantize.overrides[0]: unknown key zzzz",
                 {"known are match, skip, bits, group_size, symmetric"});
  quantize_fault("[[quantize.overrides]]\nmatch = 'a'\nbits = 5\n",
                 ":10: quantize.overrides[0].bits = 5", {"one of 2, 3, 4, 8"});
  quantize_fault("[[quantize.overrides]]\nmatch = 'a'\nbits = 0\n",
                 ":10: quantize.overrides[0].bits = 0", {"one of 2, 3, 4, 8"});
  quantize_fault("[[quantize.overrides]]\nmatch = 'a'\ngroup_size = 48\n",
                 ":10: quantize.overrides[0].group_size = 48", {"multiple of 32"});
  quantize_fault("[[quantize.overrides]]\nmatch = 'a'\nsymmetric = 'no'\n",
                 ":10: quantize.overrides[0].symmetric", {"true or false"});
  quantize_fault("[[quantize.overrides]]\nbits = 8\n", ":8: quantize.overrides[0].match = \"\"",
                 {"must not be empty"});
  quantize_fault("[[quantize.overrides]]\nmatch = 'a'\nskip = true\nbits = 8\n",
                 ":10: quantize.overrides[0].skip = true", {"remove them"});
  quantize_fault("overrides = [1, 2]\n", ":8: quantize.overrides", {"[[quantize.overrides]]"});
}

TEST_F(OptionsTest, SyntaxErrorsHaveTheirLine) {
  quantize_fault("bits = \n", ":8: ", {});
  quantize_fault("bits 4\n", ":8: ", {});
  quantize_fault("bits = 4\nbits = 3\n", ":9: ", {"bits"});
  expect_fault("[model\n", {}, ExitCode::config, ":1: ", {});
  expect_fault("[model]\npath = \"\xff\xfe\"\n", {}, ExitCode::config, ":2: ", {});
}

TEST_F(OptionsTest, SetWinsOverTheFileAndTheLastOneWins) {
  const Options o =
      load("bits = 3\n",
           {"quantize.bits=4", "quantize.bits=8", "quantize.group_size=-1",
            "quantize.symmetric = false", "quantize.method=rtn", "quantize.damp_percent=1e-3",
            "output.format=\"gptq_v2\"", "calibration.text_field=123", "run.report=a = \"b\".json",
            "quantize.overrides=[{match = \"k_proj\", skip = true}]"});
  EXPECT_EQ(o.quantize.bits, 8);
  EXPECT_EQ(o.quantize.group_size, -1);
  EXPECT_FALSE(o.quantize.symmetric);
  EXPECT_EQ(o.quantize.method, "rtn");
  EXPECT_EQ(o.quantize.damp_percent, 1e-3);
  EXPECT_EQ(o.output.format, "gptq_v2");
  EXPECT_EQ(o.calibration.text_field, "123");
  EXPECT_EQ(o.run.report, "a = \"b\".json");
  ASSERT_EQ(o.quantize.overrides.size(), 1U);
  EXPECT_TRUE(o.quantize.overrides[0].skip);
  // A value of the file that --set replaces is not checked.
  EXPECT_EQ(load("bits = 5\n", {"quantize.bits=4"}).quantize.bits, 4);
  // A line break cannot bring in a second key.
  EXPECT_EQ(load("", {"run.report=\"a\"\nx = 1"}).run.report, "\"a\"\nx = 1");
}

TEST_F(OptionsTest, SetFaults) {
  set_fault("quantize.bit=4", "--set unknown key quantize.bit", {"did you mean quantize.bits?"});
  set_fault("quantise.bits=4", "--set quantise.bits: unknown section [quantise]",
            {"did you mean [quantize]?"});
  set_fault("bits=4", "--set bits=4: the key needs its section", {"quantize.bits=4"});
  set_fault("quantize.bits=5", "--set quantize.bits = 5: must be one of 2, 3, 4, 8", {});
  set_fault("quantize.bits=four",
            "--set quantize.bits = ", {"expected an integer, found a string"});
  set_fault("quantize.bits=", "--set quantize.bits = ", {"expected an integer"});
  set_fault("quantize.symmetric=yes", "--set quantize.symmetric = ", {"expected true or false"});
  set_fault("quantize.overrides=[{match='(', bits=4}]", "--set quantize.overrides[0].match = \"(\"",
            {"no regular expression"});
  expect_fault(complete(""), {"quantize.bits"}, ExitCode::usage,
               "--set quantize.bits: ", {"section.key=value"});
  expect_fault(complete(""), {"model.path=\xff"}, ExitCode::usage, "--set", {"UTF-8"});
}

TEST_F(OptionsTest, PathsMustBeSetAndThere) {
  expect_fault("[quantize]\nbits = 4\n", {}, ExitCode::config, ": model.path is not set",
               {"under [model]"});
  expect_fault("[model]\npath = \"\"\n", {}, ExitCode::config, ":2: model.path = \"\"",
               {"must not be empty"});
  expect_fault(complete("[output]\npath = \"\"\n"), {}, ExitCode::config,
               ":8: ", {"output"});  // the section twice
  expect_fault(complete(""), {"output.path="}, ExitCode::config, "--set output.path = \"\"",
               {"must not be empty"});
  EXPECT_EQ(load("", {"calibration.data="}).calibration.data, "");  // the mix that is shipped
  EXPECT_EQ(load("method = \"rtn\"\n", {"calibration.data="}).calibration.data, "");

  const std::string missing = (folder_ / "missing").string();
  expect_fault(complete(""), {"model.path=" + missing}, ExitCode::no_input,
               "--set model.path = \"" + missing + "\": no such folder", {});
  expect_fault(complete("").replace(complete("").find("model\""), 5, "modal"), {},
               ExitCode::no_input, ":2: model.path", {"no such folder"});
  EXPECT_EQ(load("", {"model.path=meta-llama/Llama-2-7b-hf@main"}).model.path,
            "meta-llama/Llama-2-7b-hf@main");
  expect_fault(complete(""), {"model.path=./Llama-2-7b-hf"}, ExitCode::no_input, "--set model.path",
               {"no such folder"});
  EXPECT_EQ(load("", {"calibration.data=hf:org/data:train"}).calibration.data, "hf:org/data:train");
  expect_fault(complete(""), {"calibration.data=hf:org/data"}, ExitCode::config,
               "--set calibration.data = hf:org/data: write data of the hub as", {});
  expect_fault(complete(""), {"model.path=" + (folder_ / "calib.h5").string()}, ExitCode::no_input,
               "--set model.path", {"is a file"});
  expect_fault(complete(""), {"calibration.data=" + missing}, ExitCode::no_input,
               "--set calibration.data", {"no such file"});
  expect_fault(complete(""), {"calibration.data=" + folder_.string()}, ExitCode::no_input,
               "--set calibration.data", {"is a folder"});
  expect_fault(complete(""), {"evaluate.data=" + missing}, ExitCode::no_input,
               "--set evaluate.data", {"no such file"});
  EXPECT_EQ(
      load_options(write(complete("")), {"model.path=" + missing}, Inputs::unchecked).model.path,
      missing);

  // The same folder, written in other ways.
  fs::create_directory_symlink(folder_ / "model", folder_ / "link");
  for (const std::string same : {"model", "model/", "model/.", "out/../model", "link"})
    expect_fault(complete(""), {"output.path=" + (folder_ / same).string()}, ExitCode::config,
                 "--set output.path", {"folder of model.path"});
  EXPECT_NO_THROW(load("", {"output.path=" + (folder_ / "model2").string()}));
}

TEST_F(OptionsTest, MixOfSources) {
  const std::string a = (folder_ / "a.txt").string();
  std::ofstream(a) << "x";
  const std::string mix = "[[calibration.mix]]\ndata = \"" + a +
                          "\"\n[[calibration.mix]]\ndata = \"hf:org/chats/en:train\"\nshare = "
                          "2.5\ntext_field = \"body\"\n";
  const Options o = load(mix, {"calibration.data="});
  ASSERT_EQ(o.calibration.mix.size(), 2U);
  EXPECT_EQ(o.calibration.mix[0].data, a);
  EXPECT_EQ(o.calibration.mix[0].share, 0.0);
  EXPECT_EQ(o.calibration.mix[1].share, 2.5);
  EXPECT_EQ(o.calibration.mix[1].text_field, "body");
  const Options again = load_options(write(options_as_toml(o)), {});
  EXPECT_EQ(options_as_json(again), options_as_json(o));
  EXPECT_EQ(options_as_json(without_folders(o))["calibration"]["mix"],
            nlohmann::json::parse(R"([{"data": "a.txt"}, {"data": "hf:org/chats/en:train",
                                       "share": 2.5, "text_field": "body"}])"));

  expect_fault(complete(mix), {}, ExitCode::config, ":4: calibration.data",
               {"[[calibration.mix]] are both given"});
  const auto fault = [&](const std::string& entry, const std::string& where,
                         const std::vector<std::string>& parts, ExitCode code = ExitCode::config) {
    expect_fault(complete("[[calibration.mix]]\n" + entry), {"calibration.data="}, code, where,
                 parts);
  };
  fault("share = 1\n", ":8: calibration.mix[0].data = \"\"", {"must not be empty"});
  fault("data = 'x'\nshare = 0\n", ":10: calibration.mix[0].share = 0.0", {"above 0"});
  fault("data = 'x'\nshares = 1\n", ":10: calibration.mix[0]: unknown key shares",
        {"did you mean share?"});
  fault("data = './missing.txt'\n", ":9: calibration.mix[0].data", {"no such file"},
        ExitCode::no_input);
}

TEST_F(OptionsTest, MissingFile) {
  const auto expect = [](const fs::path& path, const std::string& part) {
    try {
      load_options(path, {});
      ADD_FAILURE() << path;
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::no_input);
      EXPECT_TRUE(std::string(error.what()).starts_with(path.string() + ": ")) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  write("");
  expect(folder_ / "rum.toml",
         "no such file; did you mean " + (folder_ / "run.toml").string() + "?");
  expect(folder_ / "nowhere" / "else.toml", "no such file");
  expect(folder_, "is a folder");
}

TEST_F(OptionsTest, EchoReadsBackEqual) {
  Options o = load(
      "bits = 3\ndamp_percent = 0.1\nmse = 2.4\n[[quantize.overrides]]\nmatch = "
      "'a\\.b\"c'\nsymmetric = false\n"
      "[[quantize.overrides]]\nmatch = 'd'\nskip = true\n[[quantize.overrides]]\nmatch = 'e'\nbits "
      "= 8\ngroup_size = -1\n");
  o.run.report = "tab\there, \"quotes\", \\ and \x7f, ä";
  const std::string text = options_as_toml(o);
  const Options back = load_options(write(text), {});
  EXPECT_EQ(options_as_toml(back), text);
  EXPECT_EQ(options_as_json(back), options_as_json(o));
  EXPECT_EQ(back.run.report, o.run.report);
  EXPECT_EQ(back.quantize.damp_percent, 0.1);
  ASSERT_EQ(back.quantize.overrides.size(), 3U);
  EXPECT_EQ(back.quantize.overrides[0].match, "a\\.b\"c");
  EXPECT_EQ(back.quantize.overrides[0].symmetric, "false");

  const nlohmann::json json = options_as_json(o);
  EXPECT_EQ(json["quantize"]["bits"], 3);
  EXPECT_EQ(json["quantize"]["damp_percent"], 0.1);
  EXPECT_EQ(json["output"]["overwrite"], false);
  EXPECT_EQ(json["quantize"]["overrides"],
            nlohmann::json::parse(
                R"([{"match": "a\\.b\"c", "symmetric": false}, {"match": "d", "skip": true},
                                      {"match": "e", "bits": 8, "group_size": -1}])"));
}

TEST_F(OptionsTest, ValidateWithoutAFile) {
  Options o = load("");
  EXPECT_NO_THROW(validate_options(o));
  o.quantize.bits = 5;
  try {
    validate_options(o);
    FAIL();
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "quantize.bits = 5: must be one of 2, 3, 4, 8");
  }
  o.quantize.bits = 4;
  o.quantize.overrides.push_back(
      {.match = "[", .skip = false, .bits = 0, .group_size = 0, .symmetric = ""});
  EXPECT_THROW(validate_options(o), UserError);
  o.quantize.overrides[0].match = "x";
  EXPECT_NO_THROW(validate_options(o));
  o.quantize.overrides[0].symmetric = "maybe";
  EXPECT_THROW(validate_options(o), UserError);
}

// Every default obeys its own rule, but for what has to be given.
TEST(OptionsVisit, KeysAreUniqueAndInOrderAndDefaultsAreValid) {
  std::set<std::string> keys;
  const Options defaults;
  visit_options(defaults, [&](const std::string& key, const auto& value, const auto& rule,
                              const char*, const std::string& help) {
    EXPECT_TRUE(keys.insert(key).second) << key;
    EXPECT_EQ(std::count(key.begin(), key.end(), '.'), 1) << key;
    EXPECT_FALSE(help.empty()) << key;
    if (key == "model.path" || key == "output.path") return;
    EXPECT_EQ(rule.fault(value), "") << key;
  });
  EXPECT_EQ(keys.size(), 65U);  // fails when an option of the structure is not visited, or a new
                                // one was added: count it here
}

TEST(OptionsHelp, HasEveryOptionWithTypeDefaultAndUnit) {
  const std::string help = options_help();
  const auto line_of = [&](const std::string& section, const std::string& name) {
    const std::size_t begin = help.find("\n  " + name + " ", help.find("\n[" + section + "]\n"));
    return begin == std::string::npos
               ? ""
               : help.substr(begin + 1, help.find('\n', begin + 1) - begin - 1);
  };
  const Options defaults;
  visit_options(defaults, [&](const std::string& key, const auto&, const auto& rule,
                              const std::string& unit, const char* text) {
    const std::string line = line_of(key.substr(0, key.find('.')), key.substr(key.find('.') + 1));
    EXPECT_NE(line.find(text), std::string::npos) << key << ": " << line;
    EXPECT_NE(line.find(unit), std::string::npos) << key;
    EXPECT_NE(line.find(rule.text()), std::string::npos) << key;
  });
  const std::string bits = line_of("quantize", "bits");
  EXPECT_NE(bits.find(" integer "), std::string::npos) << bits;
  EXPECT_NE(bits.find(" 4 "), std::string::npos) << bits;
  EXPECT_NE(bits.find("one of 2, 3, 4, 8"), std::string::npos) << bits;
  EXPECT_NE(line_of("parallel", "timeout").find(" s "), std::string::npos);
  EXPECT_NE(line_of("quantize", "damp_percent").find(" number "), std::string::npos);
  EXPECT_NE(line_of("quantize", "  match").find("regular expression"), std::string::npos);
}

TEST(Suggest, Distances) {
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance("abc", ""), 3U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
  EXPECT_EQ(edit_distance("gtpq", "gptq"), 1U);  // neighbours swapped
  EXPECT_EQ(edit_distance("bits", "bits"), 0U);
  EXPECT_EQ(nearest_name("sym", {"bits", "symmetric"}), "symmetric");
  EXPECT_EQ(nearest_name("seq_len", {"seed", "seqlen", "samples"}), "seqlen");
  EXPECT_EQ(nearest_name("unrelated", {"bits", "seed"}), "");
  EXPECT_EQ(nearest_name("x", {}), "");
}

// The shipped configurations, without their paths being there.
TEST(Configs, Parse) {
  int count = 0;
  for (const fs::directory_entry& entry :
       fs::directory_iterator(tests_folder().parent_path() / "configs")) {
    if (entry.path().extension() != ".toml") continue;
    ++count;
    EXPECT_NO_THROW(load_options(entry.path(), {}, Inputs::unchecked)) << entry.path();
  }
  EXPECT_GE(count, 2);
}

}  // namespace
}  // namespace qpipe
