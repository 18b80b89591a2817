// Every float type: all of its codes, against the value that the code stands for.
#include "pipeline/model/finite.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/pipeline/file_faults.h"

namespace qpipe {
namespace {

// The value of a code with so many bits of exponent and mantissa, as IEEE 754 has it.
bool is_finite(std::uint32_t code, int exponent_bits, int mantissa_bits) {
  const std::uint32_t exponent = code >> mantissa_bits & ((1U << exponent_bits) - 1);
  return exponent != (1U << exponent_bits) - 1;
}

TEST(Finite, EveryCodeOf16Bits) {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const auto word = static_cast<std::uint16_t>(code);
    EXPECT_EQ(first_not_finite(DType::f16, &word, 2).has_value(), !is_finite(code, 5, 10));
    EXPECT_EQ(first_not_finite(DType::bf16, &word, 2).has_value(), !is_finite(code, 8, 7));
  }
}

TEST(Finite, EveryCodeOf8Bits) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<unsigned char>(code);
    EXPECT_EQ(first_not_finite(DType::f8_e5m2, &byte, 1).has_value(),
              !is_finite(static_cast<std::uint32_t>(code), 5, 2));
    EXPECT_EQ(first_not_finite(DType::f8_e4m3, &byte, 1).has_value(), code == 127 || code == 255);
    EXPECT_EQ(first_not_finite(DType::f8_e8m0, &byte, 1).has_value(), code == 255);
    EXPECT_FALSE(first_not_finite(DType::u8, &byte, 1).has_value());
  }
}

TEST(Finite, TheFirstIsFoundWhereverItIs) {
  std::vector<float> values(10000, 3e38f);
  EXPECT_EQ(first_not_finite(DType::f32, values.data(), 40000), std::nullopt);
  for (const std::int64_t at : {9999, 4096, 4095, 0}) {
    values[static_cast<std::size_t>(at)] = at % 2 == 0 ? NAN : -INFINITY;
    EXPECT_EQ(first_not_finite(DType::f32, values.data(), 40000), at);
  }
}

TEST(Finite, TheFaultNamesFileTensorAndElement) {
  const TemporaryFolder folder;
  std::vector<double> values(24, 1.0);
  const TensorInfo tensor{"a.weight", DType::f64, {2, 3, 4}};
  folder.write("config.json", "{}");
  SafetensorsWriter writer(folder.path() / "model.safetensors", {tensor});
  writer.write(tensor.name, values.data());
  writer.finish();
  const Checkpoint checkpoint(folder.path());
  const auto check = [&] { check_finite(checkpoint, tensor, tensor.dtype, 96, values.data(), 96); };
  EXPECT_NO_THROW(check());
  values[7] = INFINITY;
  expect_fault(check, ExitCode::data,
               {"model.safetensors: a.weight", "[1, 1, 3]", "not finite", "get it again"});
}

TEST(Finite, LargestMagnitude) {
  const TemporaryFolder folder;
  const std::vector<float> f32{1.0f, -70000.0f, 3.0f};
  const std::vector<bf16> half{to_bf16(-2.0f), to_bf16(0.5f)};
  const std::vector<TensorInfo> tensors{{"f", DType::f32, {3}}, {"h", DType::bf16, {2}}};
  SafetensorsWriter writer(folder.path() / "model.safetensors", tensors);
  writer.write("f", f32.data());
  writer.write("h", half.data());
  writer.finish();
  folder.write("config.json", "{}");
  const Checkpoint checkpoint(folder.path());
  EXPECT_EQ(largest_magnitude(checkpoint, checkpoint.info("f")), 70000.0f);
  EXPECT_EQ(largest_magnitude(checkpoint, checkpoint.info("h")), 2.0f);
}

}  // namespace
}  // namespace qpipe
