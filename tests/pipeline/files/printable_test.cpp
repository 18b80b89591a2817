#include "pipeline/files/printable.h"

#include <gtest/gtest.h>

#include "pipeline/files/error.h"

namespace qpipe {
namespace {

TEST(Printable, LeavesPrintableTextAlone) {
  for (const char* text : {"", "model.layers.0", "Größe café 模型 😀", "a\\nb"})
    EXPECT_EQ(printable(text), text);
}

TEST(Printable, EscapesControlCharactersAndLineBreaks) {
  EXPECT_EQ(printable("a\x1b[2J\nqpipe: error: forged\r\t\x07\x7f"),
            "a\\x1b[2J\\nqpipe: error: forged\\r\\t\\x07\\x7f");
  EXPECT_EQ(printable(std::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\x9b31m");                                          // C1: CSI in one character
  EXPECT_EQ(printable("gpj\xe2\x80\xae.exe"), "gpj\\u202e.exe");  // right-to-left override
}

TEST(Printable, EscapesWhatIsNotUtf8) {
  EXPECT_EQ(printable("caf\xe9/x"), "caf\\xe9/x");
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");                    // overlong
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // a surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond U+10FFFF
  EXPECT_EQ(printable("\xe2\x82"), "\\xe2\\x82");                    // cut short
}

TEST(Printable, KeepsBeginningAndEndOfALongText) {
  const std::string text = "config.json: " + std::string(1000000, 'x') + "; do this";
  const std::string result = printable(text, 100);
  EXPECT_LE(result.size(), 100U);
  EXPECT_GE(result.size(), 90U);
  EXPECT_TRUE(result.starts_with("config.json: xxx"));
  EXPECT_TRUE(result.ends_with("xxx; do this"));
  EXPECT_NE(result.find(" ... "), std::string::npos);
}

TEST(Printable, CutsBetweenCharactersAndEscapes) {
  for (std::size_t most = 20; most < 60; ++most)
    for (const char* piece : {"é", "模", "😀", "\x1b", "\xe9"}) {
      std::string text;
      for (int i = 0; i < 100; ++i) text += piece;
      const std::string result = printable(text, most);
      EXPECT_LE(result.size(), most);
      EXPECT_EQ(printable(result, most), result) << most << " " << result;
    }
}

TEST(Printable, IsWhatAUserErrorSays) {
  EXPECT_STREQ(UserError(ExitCode::data, "model_type \"\x1b[2J\n\" is unknown").what(),
               "model_type \"\\x1b[2J\\n\" is unknown");
}

}  // namespace
}  // namespace qpipe
