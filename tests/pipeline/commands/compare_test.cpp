#include "pipeline/commands/compare.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <functional>

#include "pipeline/commands/compare_table.h"
#include "pipeline/files/error.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;
using Texts = std::vector<std::string>;

void expect_fault(const std::function<void()>& work, ExitCode code, const Texts& parts) {
  try {
    work();
    ADD_FAILURE() << "accepted";
  } catch (const UserError& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.code, code) << message;
    for (const std::string& part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << "\nexpected part: " << part;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

TEST(ReadMethods, NamesAndTheirSettings) {
  const std::vector<CompareMethod> methods = read_methods(
      "gptq,gptq:act_group_aware=true,mse=2.4,awq:grid=10,bnb-nf4:double_quant=true,fp8-block");
  ASSERT_EQ(methods.size(), 5u);
  EXPECT_EQ(methods[0].label, "gptq");
  EXPECT_EQ(methods[0].sets, Texts{});
  EXPECT_EQ(methods[1].label, "gptq:act_group_aware=true,mse=2.4");
  EXPECT_EQ(methods[1].method, "gptq");
  EXPECT_EQ(methods[1].sets, (Texts{"quantize.act_group_aware=true", "quantize.mse=2.4"}));
  EXPECT_EQ(methods[2].sets, Texts{"awq.grid=10"});
  EXPECT_EQ(methods[3].sets, Texts{"bnb.double_quant=true"});
  EXPECT_EQ(methods[4].method, "fp8-block");
  EXPECT_EQ(folder_suffix(methods[0]), "gptq");
  EXPECT_EQ(folder_suffix(methods[1]), "gptq-act_group_aware-true-mse-2.4");
  EXPECT_EQ(folder_suffix(methods[3]), "bnb-nf4-double_quant-true");
  for (const char* name : {"gptq", "awq", "rtn", "bnb-nf4", "bnb-fp4", "bnb-int8", "fp8",
                           "fp8-block", "nvfp4", "mxfp4"})
    EXPECT_EQ(read_methods(name).front().method, name);
}

TEST(ReadMethods, Faults) {
  const auto fault = [](const std::string& text, const Texts& parts) {
    expect_fault([&] { read_methods(text); }, ExitCode::usage, parts);
  };
  fault("gtpq", {"--methods gtpq", "unknown method", "did you mean gptq?"});
  fault("gptq,nf4x", {"unknown method nf4x", "known are gptq, awq, rtn"});
  fault("", {"empty"});
  fault("gptq,,awq", {"empty"});
  fault("gptq,", {"empty"});
  fault("gptq:", {"METHOD:key=value"});
  fault("gptq:mse", {"METHOD:key=value"});
  fault("gptq:mse=", {"METHOD:key=value"});
  fault("gptq:mse=2.4,rtn,mse=2", {"settings stand behind a colon: rtn:mse=2"});
  fault("gptq:msee=2.4", {"unknown setting msee", "did you mean mse?"});
  fault("gptq:method=rtn", {"unknown setting method"});
  fault("gptq:grid=10", {"awq.grid has no effect on gptq"});
  fault("fp8:bits=4", {"quantize.bits has no effect on fp8"});
  fault("awq:block_size=128", {"bnb.block_size has no effect on awq"});
  fault("gptq,awq,gptq", {"gptq is there twice"});
}

class ReadCompare : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qpipe-compare-" + std::to_string(getpid()));
    fs::create_directories(folder_ / "model");
    for (const char* name : {"calib.h5", "eval.txt"}) std::ofstream(folder_ / name) << "x";
    write("[evaluate]\ndata = \"" + (folder_ / "eval.txt").string() +
          "\"\nbefore = false\n[run]\nreport = \"all.json\"\n");
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const std::string& rest) const {
    std::ofstream(config()) << "[model]\npath = \"" << (folder_ / "model").string()
                            << "\"\n[calibration]\ndata = \"" << (folder_ / "calib.h5").string()
                            << "\"\n[output]\npath = \"" << (folder_ / "out").string() << "/\"\n"
                            << rest;
  }
  fs::path config() const { return folder_ / "run.toml"; }

  fs::path folder_;
};

TEST_F(ReadCompare, EachMethodHasItsOptionsAndFolder) {
  const CompareRequest request =
      read_compare(config(), "gptq:mse=2.4,bits=3,rtn", {"quantize.bits=8"}, "");
  ASSERT_EQ(request.options.size(), 2u);
  EXPECT_EQ(request.options[0].quantize.method, "gptq");
  EXPECT_EQ(request.options[0].quantize.mse, 2.4);
  EXPECT_EQ(request.options[0].quantize.bits, 3);  // the method's setting wins over --set
  EXPECT_EQ(request.options[1].quantize.method, "rtn");
  EXPECT_EQ(request.options[1].quantize.mse, -1.0);
  EXPECT_EQ(request.options[1].quantize.bits, 8);
  EXPECT_EQ(request.options[0].output.path, (folder_ / "out-gptq-mse-2.4-bits-3").string());
  EXPECT_EQ(request.options[1].output.path, (folder_ / "out-rtn").string());
  for (const Options& options : request.options) {
    EXPECT_TRUE(options.evaluate.before && options.evaluate.after);
    EXPECT_EQ(options.run.report, "");
  }
  EXPECT_EQ(request.stem, folder_ / "out.compare");
  EXPECT_EQ(read_compare(config(), "rtn", {}, (folder_ / "table").string()).stem,
            folder_ / "table");
}

TEST_F(ReadCompare, Faults) {
  const auto fault = [&](const std::string& methods, const Texts& sets, const std::string& out,
                         ExitCode code, const Texts& parts) {
    expect_fault([&] { read_compare(config(), methods, sets, out); }, code, parts);
  };
  fault("awq", {"quantize.mse=2.4"}, "", ExitCode::config,
        {"quantize.mse", "(for awq of --methods)"});
  fault("gptq:bits=5", {}, "", ExitCode::config,
        {"quantize.bits = 5", "one of 2, 3, 4, 8", "(for gptq:bits=5 of --methods)"});
  fault("rtn", {}, (folder_ / "none" / "table").string(), ExitCode::cannot_create,
        {"--out", "none is no folder"});
  fault(
      "rtn",
      {"output.path=" + (folder_ / "mod").string(), "model.path=" + (folder_ / "absent").string()},
      "", ExitCode::no_input, {"absent", "no such folder"});
  EXPECT_EQ(read_compare(config(), "gptq,rtn", {"output.overwrite=true"}, "").methods.size(), 2u);
  write("");
  fault("rtn", {}, "", ExitCode::config, {"run.toml: evaluate.data is not set", "[evaluate]"});
}

CompareRow row(const std::string& label, int bits, double perplexity, bool vllm,
               bool calibrated = false) {
  CompareRow r;
  r.label = r.method = label;
  r.folder = "out-" + label;
  r.bits = bits;
  r.calibrated = calibrated;
  r.perplexity = perplexity;
  r.bytes = 1'234'567'890;
  r.bits_per_weight = bits + 0.125;
  r.seconds = 61.25;
  r.loaders = {{"transformers", true, ""}, {"vLLM", vllm, vllm ? "" : "has symmetric grids only"}};
  return r;
}

Comparison comparison(std::vector<CompareRow> rows) {
  Comparison c;
  c.model = "org/tiny";
  c.evaluation = "eval.txt";
  c.calibration = "calib.h5";
  c.device = "CPU";
  c.original_perplexity = 8.0;
  c.original_bytes = 4'000'000'000;
  c.original_bits_per_weight = 16.0;
  c.rows = std::move(rows);
  return c;
}

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

TEST(CompareTable, IncreaseIsRelativeToTheOriginal) {
  const Comparison c = comparison({row("rtn", 4, 9.0, true)});
  EXPECT_EQ(increase(c, c.rows[0]), 0.125);
  EXPECT_EQ(increase(c, row("gptq", 4, 7.0, true)), -0.125);
}

TEST(CompareTable, TextIsAligned) {
  EXPECT_EQ(comparison_text(
                comparison({row("rtn", 4, 9.0, true), row("gptq:mse=2.4", 4, 8.25, false, true)})),
            "org/tiny\n"
            "Perplexity on eval.txt, each window alone; lower is better. Time without evaluations, "
            "1 rank on CPU.\n"
            "\n"
            "method        perplexity  increase  size GB  bits/weight  time s  loaded by\n"
            "original          8.0000              4.000       16.000\n"
            "rtn               9.0000  +12.50 %    1.235        4.125    61.2  transformers, vLLM\n"
            "gptq:mse=2.4      8.2500   +3.12 %    1.235        4.125    61.2  transformers\n"
            "\n"
            "4 bits, best first: gptq:mse=2.4 (+3.12 %), rtn (+12.50 %). The best of them that "
            "vLLM serves: rtn.\n"
            "Close figures may change places on other text; a larger evaluate.samples tells more.\n"
            "Calibrated: gptq:mse=2.4; on calib.h5. Text like the model's own use serves best.\n"
            "Without calibration, from the weights alone: rtn.\n"
            "Served by vLLM as it is (`vllm serve FOLDER`): rtn.\n"
            "Not served by vLLM: gptq:mse=2.4: has symmetric grids only.\n");
}

TEST(CompareTable, MarkdownHasEveryRowAndColumn) {
  const std::string text = comparison_markdown(comparison({row("rtn", 4, 9.0, true)}));
  EXPECT_TRUE(has_line(text, "# org/tiny"));
  EXPECT_TRUE(has_line(
      text, "| method | perplexity | increase | size GB | bits/weight | time s | loaded by |"))
      << text;
  EXPECT_TRUE(has_line(text, "| --- | ---: | ---: | ---: | ---: | ---: | --- |")) << text;
  EXPECT_TRUE(has_line(text, "| original | 8.0000 |  | 4.000 | 16.000 |  |  |")) << text;
  EXPECT_TRUE(
      has_line(text, "| rtn | 9.0000 | +12.50 % | 1.235 | 4.125 | 61.2 | transformers, vLLM |"))
      << text;
  EXPECT_TRUE(has_line(text, "- Without calibration, from the weights alone: rtn.")) << text;
}

TEST(CompareTable, GuidanceOrdersEachWidthAsMeasured) {
  CompareRow fp8 = row("fp8", 8, 8.0, true);
  fp8.rounds_activations = true;
  const Texts lines = guidance(comparison(
      {row("rtn", 4, 9.0, false), fp8, row("nvfp4", 4, std::nan(""), true),
       row("gptq", 4, 8.5, false), row("awq", 4, 8.5, false), row("mxfp4", 4, HUGE_VAL, true)}));
  ASSERT_GE(lines.size(), 2u);
  // Equal ones in the order given; what is no finite number comes last and is not advised.
  EXPECT_EQ(lines[0],
            "4 bits, best first: gptq (+6.25 %), awq (+6.25 %), rtn (+12.50 %), nvfp4 (no number), "
            "mxfp4 (no number). vLLM serves none of "
            "them with a finite perplexity.");
  EXPECT_EQ(lines[1], "8 bits, best first: fp8 (+0.00 %). The best of them that vLLM serves: fp8.");
  EXPECT_NE(lines.back().find("for fp8 the loaders also round"), std::string::npos) << lines.back();
}

TEST(CompareTable, AMethodAloneNeedsNoOthers) {
  const Texts lines = guidance(comparison({row("bnb-nf4", 4, 8.5, false)}));
  EXPECT_EQ(lines.front(), "4 bits, best first: bnb-nf4 (+6.25 %). vLLM serves none of them.");
  for (const std::string& line : lines) {
    EXPECT_EQ(line.find("Calibrated"), std::string::npos) << line;
    EXPECT_EQ(line.find("round"), std::string::npos) << line;
  }
  EXPECT_TRUE(guidance(comparison({})).empty());
}

TEST(CompareTable, JsonHasTheFiguresUnrounded) {
  const nlohmann::json json = comparison_json(
      comparison({row("rtn", 4, 9.0, true), row("gptq", 4, std::nan(""), true, true)}));
  EXPECT_EQ(json["original"]["perplexity"], 8.0);
  EXPECT_EQ(json["original"]["bytes"], 4'000'000'000);
  ASSERT_EQ(json["rows"].size(), 2u);
  EXPECT_EQ(json["rows"][0]["perplexity_increase"], 0.125);
  EXPECT_EQ(json["rows"][0]["bytes"], 1'234'567'890);
  EXPECT_EQ(json["rows"][0]["seconds"], 61.25);
  EXPECT_EQ(json["rows"][0]["loaders"][1]["name"], "vLLM");
  EXPECT_EQ(json["rows"][1]["calibrated"], true);
  EXPECT_TRUE(
      nlohmann::json::parse(json.dump())["rows"][1]["perplexity"].is_null());  // JSON has no NaN
}

}  // namespace
}  // namespace qpipe
