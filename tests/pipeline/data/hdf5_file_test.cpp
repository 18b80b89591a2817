// Files of tests/golden/hostile: each is refused with what is wrong with it, and nothing else
// happens.
#include "pipeline/data/hdf5_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "pipeline/files/error.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

const fs::path hostile = tests_folder() / "golden/hostile";

std::string fault_of(const fs::path& path, const std::string& dataset = "input_ids",
                     std::int64_t samples = 0, std::int64_t seqlen = 0) {
  try {
    read_hdf5(path, dataset, samples, seqlen);
  } catch (const UserError& error) {
    EXPECT_EQ(error.code, ExitCode::data) << error.what();
    EXPECT_TRUE(std::string(error.what()).starts_with(path.string())) << error.what();
    return error.what();
  }
  return "no fault";
}

void expect_fault(const fs::path& path, const std::string& part,
                  const std::string& dataset = "input_ids") {
  const std::string fault = fault_of(path, dataset);
  EXPECT_NE(fault.find(part), std::string::npos) << path << ": " << fault;
}

TEST(ReadHdf5, SizesThatOverflowAreImpossible) {
  expect_fault(hostile / "extent-overflow.h5", "impossible size [2305843009213693952, 64]");
  expect_fault(hostile / "extent-overflow-leak.h5", "impossible size");
  // Also where few of them are asked for.
  EXPECT_NE(fault_of(hostile / "extent-overflow-leak.h5", "input_ids", 1, 4).find("impossible"),
            std::string::npos);
}

TEST(ReadHdf5, MoreThanTheFileCanHoldIsRefused) {
  expect_fault(hostile / "extent-huge.h5", "in 0 bytes of the file, which is too much");
  expect_fault(hostile / "mostly-absent.h5",
               "68719476736 bytes of values in 2048 bytes of the file, which is too much");
  expect_fault(hostile / "mostly-absent-packed.h5", "which is too much");
  expect_fault(hostile / "unwritten.h5", "nothing was ever written to it");
}

TEST(ReadHdf5, FillValuesThatTheAuthorSetAreRead) {
  const Hdf5Ids found = read_hdf5(hostile / "target.h5", "input_ids", 3, 0);
  EXPECT_EQ(found.sizes, (std::vector<std::int64_t>{8, 32}));
  EXPECT_EQ(found.ids, std::vector<std::int32_t>(96, 5));
}

TEST(ReadHdf5, NoOtherFileIsRead) {
  expect_fault(hostile / "external-storage.h5", "another file");
  expect_fault(hostile / "virtual.h5", "virtual dataset");
  expect_fault(hostile / "external-link.h5", "link into another file");
  expect_fault(hostile / "soft-link.h5", "leads nowhere in this file");
  expect_fault(hostile / "soft-link.h5", "link into another file", "elsewhere");
  expect_fault(hostile / "soft-link.h5", "link into another file", "group/input_ids");
  expect_fault(hostile / "plugin-filter.h5", "the HDF5 filter 32015 (zstd)");
}

TEST(ReadHdf5, ALinkToAFifoDoesNotHang) {
  const fs::path folder = fs::temp_directory_path() / ("qpipe-hdf5-" + std::to_string(getpid()));
  fs::create_directories(folder);
  fs::copy(hostile / "external-link-fifo.h5", folder);
  ASSERT_EQ(mkfifo((folder / "fifo").c_str(), 0600), 0);
  const auto begin = std::chrono::steady_clock::now();
  expect_fault(folder / "external-link-fifo.h5", "link into another file");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  fs::remove_all(folder);
}

TEST(ReadHdf5, AFileThatCrashesTheLibraryIsDamaged) {
  for (const char* name : {"hdf5-library-crash-1.h5", "hdf5-library-crash-2.h5"}) {
    // Another version of the library may see what is wrong.
    const std::string fault = fault_of(hostile / name, "tokens");
    EXPECT_TRUE(fault.find("libhdf5 crashed on it (") != std::string::npos ||
                fault.find("dataset") != std::string::npos ||
                fault.find("damaged") != std::string::npos)
        << fault;
  }
}

// Every byte of a good file, changed: an answer or a fault in the data, never anything else.
TEST(ReadHdf5, FlippedBytesGiveAnAnswerOrAFault) {
  std::ifstream original(hostile / "target.h5", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(original), {}};
  ASSERT_GT(bytes.size(), 1000U);
  const fs::path path =
      fs::temp_directory_path() / ("qpipe-flip-" + std::to_string(getpid()) + ".h5");
  int read = 0;
  int refused = 0;
  for (std::size_t at = 0; at < bytes.size(); at += 7) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(~changed[at]);
    std::ofstream(path, std::ios::binary) << changed;
    fault_of(path) == "no fault" ? ++read : ++refused;
  }
  fs::remove(path);
  EXPECT_GT(read, 20);
  EXPECT_GT(refused, 20);
}

}  // namespace
}  // namespace qpipe
