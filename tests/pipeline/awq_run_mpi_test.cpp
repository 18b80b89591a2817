// A checkpoint written by AWQ computes what the original does: with 8 bits the logits differ by
// rounding only, so that norms, biases and unquantized weights must have been written with the
// factors of their pairs.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>

#include "launch/comm.h"
#include "pipeline/evaluate.h"
#include "pipeline/model/model.h"
#include "pipeline/quantize.h"
#include "tests/pipeline/oracle_options.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

struct Case {
  const char* model;
  std::size_t pairs;            // of the three layers
  const char* skip;             // regular expression of linears left unquantized
  std::size_t pairs_with_skip;  // fewer when all linears of a pair are left
};

class AwqRun : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (comm.size() > 1) GTEST_SKIP() << "one rank holds all samples";
    if (!fs::exists(oracles)) GTEST_SKIP() << "no oracles at " << oracles;
  }
  void TearDown() override { fs::remove_all(folder); }

  std::vector<float> logits_of(const fs::path& model) {
    const Checkpoint checkpoint(model);
    const Architecture architecture = read_architecture(checkpoint.config(), "config.json");
    Tokens tokens;
    tokens.samples = 2;
    tokens.seqlen = 40;
    for (std::int32_t i = 0; i < 80; ++i) tokens.ids.push_back((i * i * 7 + 13 * i + 5) % 320);
    std::vector<float> logits;
    evaluate(checkpoint, architecture, tokens, 16384, Places{}, comm, stream,
             [&](std::int64_t, const std::vector<float>& block) {
               logits.insert(logits.end(), block.begin(), block.end());
             });
    return logits;
  }

  // ‖logits − original‖ / ‖original‖, and the number of pairs in the report.
  std::pair<double, std::size_t> quantize(const std::string& method, const std::string& skip) {
    Options options = oracle_options(GetParam().model, method, folder / "out");
    options.quantize.bits = 8;
    options.quantize.symmetric = false;
    options.awq.clip = false;
    if (!skip.empty()) options.quantize.overrides.push_back({skip, true, 0, 0, ""});
    options.parallel.backend = "cpu";
    EXPECT_NO_THROW(qpipe::quantize(options, false));
    const std::vector<float> expected = logits_of(options.model.path);
    const std::vector<float> got = logits_of(options.output.path);
    double difference = 0.0;
    double norm = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      difference += std::pow(static_cast<double>(got.at(i)) - expected[i], 2);
      norm += std::pow(static_cast<double>(expected[i]), 2);
    }
    std::ifstream report(options.output.path + ".report.json");
    const nlohmann::json json = nlohmann::json::parse(report);
    return {std::sqrt(difference / norm), json.value("scales", nlohmann::json::array()).size()};
  }

  Stream stream{Backend::cpu, 0};
  Comm comm{stream, {std::chrono::seconds(60), true}};
  fs::path folder =
      fs::temp_directory_path() / ("qpipe-awq-run-" + std::to_string(std::random_device{}()));
};

TEST_P(AwqRun, LogitsAreTheOriginals) {
  const double rtn = quantize("rtn", "").first;
  const auto [error, pairs] = quantize("awq", "");
  EXPECT_LT(error, 1.5 * rtn);
  EXPECT_EQ(pairs, GetParam().pairs);
  const auto [skip_error, skip_pairs] = quantize("awq", GetParam().skip);
  EXPECT_LT(skip_error, 1.5 * rtn);
  EXPECT_EQ(skip_pairs, GetParam().pairs_with_skip);
  if (comm.root())
    std::printf("%s: awq %.2e, with skipped linears %.2e, rtn %.2e\n", GetParam().model, error,
                skip_error, rtn);
}

constexpr const char* llama_skip = "(v_proj|up_proj|layers.1.self_attn.q_proj)$";
constexpr const char* falcon_skip = "h.1.mlp.dense_h_to_4h$";

INSTANTIATE_TEST_SUITE_P(
    Families, AwqRun,
    testing::Values(Case{"llama", 9, llama_skip, 9}, Case{"llama-mha", 12, llama_skip, 12},
                    Case{"llama-mha-tied-bias", 12, llama_skip, 12},
                    Case{"mistral", 9, llama_skip, 9}, Case{"qwen2", 9, llama_skip, 9},
                    Case{"qwen3", 9, llama_skip, 9}, Case{"falcon-7b-style", 3, falcon_skip, 3},
                    Case{"falcon-40b-style", 6, falcon_skip, 5},
                    Case{"falcon-rw-alibi", 6, falcon_skip, 5}),
    [](const testing::TestParamInfo<Case>& tested) {
      std::string name = tested.param.model;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

}  // namespace
}  // namespace qpipe
