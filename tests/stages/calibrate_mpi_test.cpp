#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>

#include "kernels/hessian.h"
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

  Planted(std::int64_t samples, std::int64_t seqlen, std::int64_t micro_batch, const std::vector<std::int64_t>& at, float value,
          Place place = Place::device) {
    const Blocking blocking = cut_samples(samples, seqlen, micro_batch);
    activations.blocking = blocking;
    activations.owned = contiguous_share(blocking.blocks(), comm.rank(), comm.size());
    activations.input = BlockStore(block_rows(blocking, activations.owned), width, place, testing::TempDir(), stream);
    activations.input_width = width;
    activations.input_maximum = Array<float>(1, width, stream);
    fill_zero(activations.input_maximum.view.data, activations.input_maximum.memory.bytes(), stream);
    for (std::size_t local = 0; local < activations.blocks(); ++local) {
      const std::int64_t rows = activations.input.rows(local);
      std::vector<float> values(static_cast<std::size_t>(rows * width), 1.0f);
      for (const std::int64_t sample : at) {
        const std::int64_t row = (sample - activations.first_sample(local)) * seqlen + seqlen - 1;
        if (row >= 0 && row < rows) values[static_cast<std::size_t>(row * width + 3)] = value;
      }
      const ConstTensor input(values.data(), DType::f32, rows, width);
      column_max_abs(input, activations.input_maximum, stream);
      write_block(activations.input, local, input, stream);
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
      for (const Place place : {Place::device, Place::host, Place::disk})
        EXPECT_EQ(Planted(17, 5, 10, {16, sample}, value, place).message(), expected);  // blocks of two samples, the last of one
      EXPECT_EQ(Planted(17, 5, 1000, {sample}, value).message(), expected);             // one block: most ranks have none
    }
  EXPECT_EQ(Planted(17, 5, 10, {9}, 0x1p49f).message(), "layer 3, input of m: activation 3 exceeds 2^48, first in calibration sample 9");
  EXPECT_EQ(Planted(17, 5, 10, {9}, 2.0f).message(), "");
}

}  // namespace
}  // namespace qpipe
