#include <gtest/gtest.h>

#include <cmath>
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

  Planted(std::int64_t samples, std::int64_t seqlen, std::int64_t micro_batch,
          const std::vector<std::int64_t>& at, float value, Place place = Place::device) {
    const Blocking blocking = cut_samples(samples, seqlen, micro_batch);
    activations.blocking = blocking;
    activations.owned = contiguous_share(blocking.blocks(), comm.rank(), comm.size());
    activations.inputs.push_back({BlockStore(block_rows(blocking, activations.owned), width, place,
                                             testing::TempDir(), stream),
                                  width,
                                  Array<float>(1, width, stream),
                                  {}});
    activations.input().step.panels = {{width, 1, false}};
    fill_zero(activations.input().maximum.view.data, activations.input().maximum.memory.bytes(),
              stream);
    for (std::size_t local = 0; local < activations.blocks(); ++local) {
      const std::int64_t rows = activations.input().blocks.rows(local);
      std::vector<float> values(static_cast<std::size_t>(rows * width), 1.0f);
      for (const std::int64_t sample : at) {
        const std::int64_t row = (sample - activations.first_sample(local)) * seqlen + seqlen - 1;
        if (row >= 0 && row < rows) values[static_cast<std::size_t>(row * width + 3)] = value;
      }
      const ConstTensor input(values.data(), DType::f32, rows, width);
      column_max_abs(input, activations.input().maximum, stream);
      write_block(activations.input().blocks, local, input, stream);
    }
  }

  std::string message(std::int64_t tokens = 0) {
    try {
      calibrate(activations, whole_input(activations), "layer 3, input of m", tokens, Places{},
                comm, stream);
    } catch (const std::domain_error& error) {
      return error.what();
    }
    return {};
  }
};

TEST(Calibrate, NamesTheFirstSampleThatIsNotFinite) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()})
    for (const std::int64_t sample : {0, 4, 5, 16}) {
      const std::string expected =
          "layer 3, input of m: activation 3 is not finite, first in calibration sample " +
          std::to_string(sample);
      for (const Place place : {Place::device, Place::host, Place::disk})
        EXPECT_EQ(Planted(17, 5, 10, {16, sample}, value, place).message(),
                  expected);  // blocks of two samples, the last of one
      EXPECT_EQ(Planted(17, 5, 1000, {sample}, value).message(),
                expected);  // one block: most ranks have none
    }
  EXPECT_EQ(Planted(17, 5, 10, {9}, 0x1p49f).message(),
            "layer 3, input of m: activation 3 exceeds 2^48, first in calibration sample 9");
  EXPECT_EQ(Planted(17, 5, 10, {9}, 2.0f).message(), "");
  // Also where the Hessian is of other blocks.
  EXPECT_EQ(Planted(17, 5, 10, {4}, std::nanf("")).message(20),
            "layer 3, input of m: activation 3 is not finite, first in calibration sample 4");
}

// Inputs are ones but for a two in one sample: H_33 = 1 + 3 / T when it is among the T tokens.
TEST(Calibrate, ASampleOfTheTokens) {
  const Blocking blocking = cut_samples(17, 5, 10);
  ASSERT_TRUE(is_sampled(blocking, 4, 20) && is_sampled(blocking, 8, 20));  // samples 8, 9 and 16
  for (const auto& [sample, expected] :
       {std::pair{9, 1.0f + 3.0f / 15.0f}, {16, 1.0f + 3.0f / 15.0f}, {7, 1.0f}}) {
    Planted planted(17, 5, 10, {sample}, 2.0f);
    const Hessian h = calibrate(planted.activations, whole_input(planted.activations), "test", 20,
                                Places{}, planted.comm, planted.stream);
    EXPECT_FLOAT_EQ(h.diagonal[3], expected);
    EXPECT_FLOAT_EQ(h.diagonal[0], 1.0f);
  }
}

// Wherever the inputs, the sum and the result lie: the same bits.
TEST(Calibrate, PlacesChangeNoBits) {
  Stream stream(Backend::cpu, 0);
  Comm comm(stream, {});
  const std::int64_t d = hessian_sum_panel + hessian_panel(Backend::cpu) + 88;
  const Blocking blocking = cut_samples(9, 7, 14);
  const auto made = [&](const Places& places) {
    Activations a;
    a.blocking = blocking;
    a.owned = contiguous_share(blocking.blocks(), comm.rank(), comm.size());
    a.inputs.push_back(
        {BlockStore(block_rows(blocking, a.owned), d, places.input, testing::TempDir(), stream),
         d,
         Array<float>(1, d, stream),
         {}});
    a.input().step.panels = {{d, 1, false}};
    fill_zero(a.input().maximum.view.data, a.input().maximum.memory.bytes(), stream);
    for (std::size_t local = 0; local < a.blocks(); ++local) {
      std::vector<float> values(static_cast<std::size_t>(a.input().blocks.rows(local) * d));
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] =
            std::sin(0.37f * static_cast<float>(i) + static_cast<float>(a.first_sample(local)));
      const ConstTensor input(values.data(), DType::f32, a.input().blocks.rows(local), d);
      column_max_abs(input, a.input().maximum, stream);
      write_block(a.input().blocks, local, input, stream);
    }
    Hessian h = calibrate(a, whole_input(a), "test", 0, places, comm, stream);
    EXPECT_EQ(h.matrix.empty(), places.hessian_on_host);
    bring_to_device(h, stream);
    std::vector<float> values(static_cast<std::size_t>(d * d));
    copy_to_host(values.data(), h.matrix.view.data, h.matrix.memory.bytes(), stream);
    for (std::int64_t i = 0; i < d; ++i)
      EXPECT_EQ(values[static_cast<std::size_t>(i * (d + 1))],
                h.diagonal[static_cast<std::size_t>(i)]);
    return std::pair{values, mean_magnitude(a, whole_input(a), "test", comm, stream)};
  };
  const auto expected = made({});
  for (const Place input : {Place::device, Place::host, Place::disk})
    for (const std::int64_t panel :
         {std::int64_t{0}, hessian_panel(Backend::cpu), 9 * hessian_panel(Backend::cpu)})
      for (const bool on_host : {false, true}) {
        Places places;
        places.input = input;
        places.hessian_panel_columns = panel;
        places.hessian_on_host = on_host;
        EXPECT_EQ(made(places), expected) << panel << " columns, on the host " << on_host;
      }
}

}  // namespace
}  // namespace qpipe
