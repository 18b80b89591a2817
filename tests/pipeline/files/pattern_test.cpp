// Patterns match as Python's re does where they are allowed, and in bounded time and memory.
#include "pipeline/files/pattern.h"

#include <gtest/gtest.h>

#include <ctime>

#include "pipeline/files/error.h"

namespace qpipe {
namespace {

bool at_begin(const std::string& pattern, const std::string& name) {
  return Pattern(pattern, Anchor::begin).matches(name);
}
bool anywhere(const std::string& pattern, const std::string& name) {
  return Pattern(pattern, Anchor::anywhere).matches(name);
}

TEST(Pattern, IsFoundWhereItsAnchorSays) {
  EXPECT_TRUE(anywhere("mlp\\.down", "model.layers.0.mlp.down_proj"));
  EXPECT_FALSE(at_begin("mlp\\.down", "model.layers.0.mlp.down_proj"));
  EXPECT_TRUE(at_begin(".*mlp\\.down", "model.layers.0.mlp.down_proj"));
  EXPECT_TRUE(at_begin("model", "model.layers"));  // the name may go on
  EXPECT_FALSE(at_begin("model$", "model.layers"));
  EXPECT_TRUE(at_begin("a|b", "b"));
  EXPECT_TRUE(at_begin("(?i)MODEL", "model"));
}

TEST(Pattern, BeginsWithLookaheads) {
  const std::string no_tower = "(?!(?:.*\\.)?(?:visual|audio[)])(?:\\..*)?$).*proj";
  EXPECT_TRUE(at_begin(no_tower, "model.layers.0.q_proj"));
  EXPECT_FALSE(at_begin(no_tower, "model.visual.0.q_proj"));
  EXPECT_FALSE(at_begin(no_tower, "model.layers.0.norm"));
  EXPECT_TRUE(at_begin("(?=.*q_proj)(?!.*\\.1\\.)model", "model.0.q_proj"));
  EXPECT_FALSE(at_begin("(?=.*q_proj)(?!.*\\.1\\.)model", "model.1.q_proj"));
  EXPECT_FALSE(at_begin("(?=.*q_proj)(?!.*\\.1\\.)model", "model.0.k_proj"));
}

TEST(Pattern, IsRefusedInOneLine) {
  // Alternatives beside a lookahead, and what has no linear time.
  for (const std::string text :
       {"(?!a)b|c", "a(?!b)", "(a)\\1", "(?<=a)b", "(", "[", "*", "(?!a"}) {
    const std::string fault = pattern_fault(text, Anchor::begin);
    EXPECT_FALSE(fault.empty()) << text;
    EXPECT_EQ(fault.find('\n'), std::string::npos) << fault;
    EXPECT_THROW(Pattern(text, Anchor::begin), UserError) << text;
  }
  EXPECT_FALSE(pattern_fault("(?!a)b", Anchor::anywhere).empty());
  EXPECT_EQ(pattern_fault("(?!a)b", Anchor::begin), "");
}

TEST(Pattern, IsBounded) {
  const std::clock_t begin = std::clock();
  const std::string name(2000, 'a');
  EXPECT_FALSE(at_begin("(([a-z._0-9]+)+)+!", name));
  EXPECT_FALSE(anywhere("(a*)*b", name));
  // As many as there may be, one inside of the other.
  EXPECT_TRUE(at_begin(
      std::string(most_pattern_bytes / 2, '(') + std::string(most_pattern_bytes / 2, ')'), name));
  std::string numbers = "(?:0";
  for (int i = 1; i < 100000; ++i) numbers.append("|").append(std::to_string(i));
  EXPECT_TRUE(at_begin(numbers + ")$", "31415"));
  EXPECT_FALSE(at_begin(numbers + ")$", "314159"));
  for (const std::string& text :
       {std::string(most_pattern_bytes + 1, 'a'), std::string("((a{1000}){1000}){1000}"),
        std::string("a{100000}"), std::string("((((a{100}){100}){100}){100})")})
    EXPECT_FALSE(pattern_fault(text, Anchor::begin).empty()) << text.substr(0, 40);
  EXPECT_LT(std::clock() - begin, 10 * CLOCKS_PER_SEC);
}

}  // namespace
}  // namespace qpipe
