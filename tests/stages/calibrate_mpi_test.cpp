#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>

#include "launch/share.h"
#include "stages/calibrate.h"

namespace qpipe {
namespace {

constexpr std::int64_t width = 8;

// Inputs of ones in float32, but `value` in one row of one sample.
struct Planted {
  Stream stream{Backend::cpu, 0};
  Comm comm{stream, {}};
  Activations activations;
  std::vector<std::vector<float>> memory;

  Planted(std::int64_t samples, std::int64_t seqlen, std::int64_t micro_batch, const std::vector<std::int64_t>& at, float value) {
    const Blocking blocking = cut_samples(samples, seqlen, micro_batch);
    activations.blocking = blocking;
    activations.owned = contiguous_share(blocking.blocks(), comm.rank(), comm.size());
    memory.resize(static_cast<std::size_t>(activations.owned.count));
    for (std::size_t local = 0; local < memory.size(); ++local) {
      const std::int64_t block = activations.owned.begin + static_cast<std::int64_t>(local);
      const std::int64_t rows = blocking.block_size(block) * seqlen;
      memory[local].assign(static_cast<std::size_t>(rows * width), 1.0f);
      for (const std::int64_t sample : at) {
        const std::int64_t row = (sample - blocking.block_begin(block)) * seqlen + seqlen - 1;
        if (row >= 0 && row < rows) memory[local][static_cast<std::size_t>(row * width + 3)] = value;
      }
      const Tensor input(memory[local].data(), DType::f32, rows, width);
      activations.blocks.push_back({input, input});
    }
  }

  std::string message() {
    try {
      calibrate(activations, "layer 3, input of m", comm, stream);
    } catch (const std::domain_error& error) {
      return error.what();
    }
    return {};
  }
};

TEST(Calibrate, NamesTheFirstSampleThatIsNotFinite) {
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()})
    for (const std::int64_t sample : {0, 4, 5, 16}) {
      const std::string expected = "layer 3, input of m: activation 3 is not finite, first in calibration sample " + std::to_string(sample);
      EXPECT_EQ(Planted(17, 5, 10, {16, sample}, value).message(), expected);  // blocks of two samples, the last of one
      EXPECT_EQ(Planted(17, 5, 1000, {sample}, value).message(), expected);    // one block: most ranks have none
    }
  EXPECT_EQ(Planted(17, 5, 10, {9}, 0x1p49f).message(), "layer 3, input of m: activation 3 exceeds 2^48, first in calibration sample 9");
  EXPECT_EQ(Planted(17, 5, 10, {9}, 2.0f).message(), "");
}

}  // namespace
}  // namespace qpipe
