// What is no defect of qpipe does not end as one.
#include "pipeline/files/agree.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <new>

namespace qpipe {
namespace {

TEST(Agree, FaultsHaveTheCodeOfTheirKind) {
  const auto code = [](const std::exception& fault) { return user_error_of(fault).code; };
  const auto system = [](int number) {
    return std::filesystem::filesystem_error("cannot copy", "a/b",
                                             std::error_code(number, std::generic_category()));
  };
  EXPECT_EQ(code(UserError(ExitCode::data, "x")), ExitCode::data);
  EXPECT_EQ(code(std::bad_alloc()), ExitCode::config);
  EXPECT_EQ(code(system(ENOENT)), ExitCode::no_input);
  EXPECT_EQ(code(system(EACCES)), ExitCode::no_input);
  EXPECT_EQ(code(system(EIO)), ExitCode::io);
  EXPECT_EQ(code(system(ENOSPC)), ExitCode::io);
  EXPECT_EQ(code(system(EAGAIN)), ExitCode::os);
  EXPECT_EQ(code(std::runtime_error("x")), ExitCode::software);
}

TEST(Agree, MemoryThatIsUsedUpIsToldWithFigures) {
  const auto fault = fault_of([] { throw std::bad_alloc(); });  // sanitizers end at a real one
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->code, ExitCode::config);
  EXPECT_NE(std::string(fault->what()).find("GiB"), std::string::npos) << fault->what();
  EXPECT_NE(std::string(fault->what()).find("; use"), std::string::npos) << fault->what();
}

}  // namespace
}  // namespace qpipe
