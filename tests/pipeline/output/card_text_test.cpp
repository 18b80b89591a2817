#include "pipeline/output/card_text.h"

#include <gtest/gtest.h>

namespace qpipe {
namespace {

TEST(CardText, YamlIsAlwaysOneQuotedScalar) {
  EXPECT_EQ(yaml_text("org/name-1.5_b"), "\"org/name-1.5_b\"");
  EXPECT_EQ(yaml_text("a/b\nlicense: evil"), "\"a/b\\\\nlicense: evil\"");
  EXPECT_EQ(yaml_text("a\": [evil"), "\"a\\\": [evil\"");
  EXPECT_EQ(yaml_text("caf\xe9"), "\"caf\\\\xe9\"");
  EXPECT_EQ(yaml_text("null"), "\"null\"");
  EXPECT_EQ(yaml_text("\xf0\x9f\x8e\x88"), "\"\xf0\x9f\x8e\x88\"");
}

TEST(CardText, MarkdownHoldsNoMarkup) {
  EXPECT_EQ(markdown_text("Llama-3.1-8B"), "Llama-3.1-8B");
  EXPECT_EQ(markdown_text("calib_tiny.h5: all 5 samples"), "calib_tiny.h5: all 5 samples");
  EXPECT_EQ(markdown_text("a | b"), "a \\| b");
  EXPECT_EQ(markdown_text("<script>"), "\\<script\\>");
  EXPECT_EQ(markdown_text("[x](y) ![z] *b* _c_ `d`"),
            "\\[x\\](y) \\!\\[z\\] \\*b\\* \\_c\\_ \\`d\\`");
  EXPECT_EQ(markdown_text("a\n# evil"), "a\\\\n\\# evil");
}

TEST(CardText, CodeSpansEndWhereTheyShould) {
  EXPECT_EQ(code_span("org/name"), "`org/name`");
  EXPECT_EQ(code_span("a`b"), "`` a`b ``");
  EXPECT_EQ(code_span("``"), "``` `` ```");
  EXPECT_EQ(code_span("a\nb"), "`a\\nb`");
}

}  // namespace
}  // namespace qpipe
