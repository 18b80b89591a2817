// Every family's layer runs on memory without meaning.
#include "stages/load_kernels.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "kernels/stream.h"
#include "pipeline/model/model.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

TEST(LoadKernels, RunsALayerOfEachFamily) {
  const bool cuda = cuda_device_count() > 0;
  int families = 0;
  for (const auto& entry : fs::directory_iterator(tests_folder() / "golden" / "models")) {
    const fs::path config = entry.path() / "config.json";
    if (!fs::exists(config)) continue;
    std::ifstream file(config);
    const Architecture architecture =
        read_architecture(nlohmann::json::parse(file), config.string());
    const Blocking blocking = cut_samples(5, 48, 100);
    EXPECT_NO_THROW(load_kernels(architecture, blocking, cuda ? Backend::cuda : Backend::cpu, 0, 0))
        << config;
    EXPECT_GT(load_kernels_bytes(architecture, blocking), 0);
    ++families;
  }
  EXPECT_GT(families, 8);
}

}  // namespace
}  // namespace qpipe
