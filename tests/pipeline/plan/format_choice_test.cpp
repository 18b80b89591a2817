#include "pipeline/plan/format_choice.h"

#include <gtest/gtest.h>

namespace qpipe {
namespace {

FormatChoice choice_of(const std::string& target, bool symmetric) {
  Options options;
  options.output.format = "compressed-tensors";
  options.output.target = target;
  LinearSettings settings;
  settings.symmetric = symmetric;
  return choose_format(options, settings, DType::bf16);
}

TEST(FormatChoice, TellsThatTransformersOnlyDequantizesAsymmetricCompressedTensors) {
  for (const char* target : {"any", "transformers"}) {
    const FormatChoice asymmetric = choice_of(target, false);
    ASSERT_EQ(asymmetric.notes.size(), 1u) << target;
    EXPECT_NE(asymmetric.notes[0].find("CompressedTensorsConfig(dequantize=True)"),
              std::string::npos);
    EXPECT_TRUE(choice_of(target, true).notes.empty()) << target;
  }
  EXPECT_TRUE(choice_of("vllm", false).notes.empty());
}

}  // namespace
}  // namespace qpipe
