#include "pipeline/options/sizes.h"

#include <gtest/gtest.h>

#include "pipeline/files/error.h"

namespace qpipe {
namespace {

TEST(ParseSize, UnitsAreDecimalOrBinaryAsWritten) {
  EXPECT_EQ(parse_size("5GB"), 5'000'000'000);
  EXPECT_EQ(parse_size("1.5 GiB"), 1'610'612'736);
  EXPECT_EQ(parse_size("200KB"), 200'000);
  EXPECT_EQ(parse_size("7"), 7);
  EXPECT_EQ(parse_size("7B"), 7);
  EXPECT_EQ(parse_size("9007199254740991"), (std::int64_t{1} << 53) - 1);
  for (const char* bad :
       {"", "GB", "0GB", "-1GB", "5 gb", "5G", "1.2.3MB", "9999999TB", "5GB ", "9007199254740992"})
    EXPECT_THROW(parse_size(bad), UserError) << bad;
}

TEST(SizeText, GibibytesFromAnEighthOfOne) {
  EXPECT_EQ(size_text(12 << 20), "12.0 MiB");
  EXPECT_EQ(size_text((std::int64_t{1} << 27) - 1), "128.0 MiB");
  EXPECT_EQ(size_text(std::int64_t{1} << 27), "0.12 GiB");
}

}  // namespace
}  // namespace qpipe
