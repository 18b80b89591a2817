#include "pipeline/output/model_card.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "pipeline/output/source_card.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

SourceCard card_of(const std::string& text) {
  const fs::path folder = fs::temp_directory_path() / ("qpipe-card-" + std::to_string(getpid()));
  fs::create_directories(folder);
  std::ofstream(folder / "README.md") << text;
  const SourceCard card = read_source_card(folder);
  fs::remove_all(folder);
  return card;
}

TEST(SourceCard, TakesWhatIsPlain) {
  const SourceCard card = card_of(
      "---\r\nlicense: other\r\nlicense_name: 'llama3.1'\nlicense_link: "
      "https://example.com/LICENSE?x=1\nlanguage:\n- en\n- \"de\"\n  - zh-Hant\ntags:\n- a\n"
      "pipeline_tag: image-text-to-text\n---\nlicense: mit\n");
  EXPECT_EQ(card.license, "other");
  EXPECT_EQ(card.license_name, "llama3.1");
  EXPECT_EQ(card.license_link, "https://example.com/LICENSE?x=1");
  EXPECT_EQ(card.pipeline_tag, "image-text-to-text");
  EXPECT_EQ(card.languages, (std::vector<std::string>{"en", "de", "zh-Hant"}));
  EXPECT_EQ(card_of("---\nlanguage: [en, 'fr']\n---\n").languages,
            (std::vector<std::string>{"en", "fr"}));
  EXPECT_EQ(card_of("---\nlanguage: multilingual\n---\n").languages,
            std::vector<std::string>{"multilingual"});
}

TEST(SourceCard, LeavesTheRest) {
  for (const char* text :
       {"", "license: mit\n", "---\nlicense: \"x\\ny: [z\"\n---\n", "---\n license: mit\n---\n",
        "---\nlicense: [mit, x]\n---\n", "---\nlicense:\n---\n", "---\nlicense: a b\n---\n",
        "---\nlicense: mit # really\n---\n", "\xff\xfe\n---\nlicense: mit\n"}) {
    const SourceCard card = card_of(text);
    EXPECT_EQ(card.license, "") << text;
  }
  EXPECT_TRUE(card_of("---\nlanguage:\n- en de\n- <b>\n---\n").languages.empty());
  EXPECT_EQ(card_of("---\nlicense_link: javascript('x')\n---\n").license_link, "");
}

RunReport report() {
  RunReport r;
  r.version = "1.2.3";
  r.model = "org/tiny_model";
  r.method = "gptq";
  r.format = "gptq";
  r.bits_per_weight = 4.25;
  r.calibration = "text.txt: 128 random windows";
  r.calibration_tokens = 1024;
  r.evaluation = "eval.txt: first 8 windows";
  r.perplexity_before = 8.0;
  r.perplexity_after = 8.4;
  return r;
}

TEST(ModelCard, IsWhole) {
  QuantizePlan plan;
  const SourceCard source{"other", "llama3.1", "LICENSE", "", {"en", "de"}};
  const std::vector<Loader> loaders{{"transformers", true, "needs optimum", false},
                                    {"vLLM", true, "", false},
                                    {"GPTQModel", true, "", false},
                                    {"AutoAWQ", false, "loads awq only", false}};
  const std::string card =
      model_card(report(), plan, source, loaders, "[quantize]\ngroup_size = 64\n");
  EXPECT_TRUE(card.starts_with(R"(---
base_model: "org/tiny_model"
base_model_relation: "quantized"
library_name: "transformers"
pipeline_tag: "text-generation"
license: "other"
license_name: "llama3.1"
license_link: "https://huggingface.co/org/tiny_model/blob/main/LICENSE"
language:
- "en"
- "de"
tags:
- "qpipe"
- "gptq"
- "4-bit"
- "vllm"
---

# tiny_model in 4-bit (gptq)

Made with qpipe 1.2.3 from `org/tiny_model`.
)")) << card;
  EXPECT_NE(card.find("| original | 8.000 |\n| quantized | 8.400 |\n"
                      "| recovery (original / quantized) | 95.2 % |\n"),
            std::string::npos)
      << card;
  for (const char* block :
       {"AutoModelForCausalLM.from_pretrained(\"THIS_FOLDER\", device_map=\"auto\")",
        "```shell\nvllm serve THIS_FOLDER\n```", "GPTQModel.load(\"THIS_FOLDER\")",
        "`qpipe config.toml`, with what differs from the defaults in `config.toml`:\n\n"
        "```toml\n[quantize]\ngroup_size = 64\n```\n"})
    EXPECT_NE(card.find(block), std::string::npos) << block << "\n" << card;
  EXPECT_EQ(card.find("AutoAWQForCausalLM"), std::string::npos);
}

TEST(ModelCard, SaysWhatIsKnownOnly) {
  QuantizePlan plan;
  RunReport r = report();
  r.model = "folder";
  r.perplexity_before.reset();
  const std::string card = model_card(r, plan, {}, {{"vLLM", true, "", false}}, "");
  EXPECT_TRUE(
      card.starts_with("---\nlibrary_name: \"vllm\"\npipeline_tag: \"text-generation\"\n"
                       "tags:\n- \"qpipe\"\n"))
      << card;
  EXPECT_EQ(card.find("recovery"), std::string::npos);
  EXPECT_EQ(card.find("base_model"), std::string::npos);
  EXPECT_FALSE(recovery_percent(r));
  EXPECT_NEAR(*recovery_percent(report()), 95.238095, 1e-6);
}

}  // namespace
}  // namespace qpipe
