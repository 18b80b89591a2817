#include "stages/formats/bnb_format.h"

#include <cstring>

#include "tests/kernels/backends.h"

namespace qpipe {
namespace {

std::string text_of(const PackedTensor& tensor) { return {tensor.data.begin(), tensor.data.end()}; }

std::string fault_of(const std::string& text) {
  try {
    parse_quant_state(text);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "none";
}

// Offsets that Python's json.dumps wrote (of these float32 values as doubles).
TEST(QuantState, NumbersAsPythonWritesThem) {
  const std::pair<float, const char*> numbers[] = {{0.40191650390625f, "0.40191650390625"},
                                                   {0.1f, "0.10000000149011612"},
                                                   {1.0f, "1.0"},
                                                   {1e-4f, "9.999999747378752e-05"},
                                                   {0.000123456789f, "0.00012345678987912834"},
                                                   {123456.789f, "123456.7890625"},
                                                   {1e16f, "1.0000000272564224e+16"},
                                                   {1e15f, "999999986991104.0"},
                                                   {3.4028235e38f, "3.4028234663852886e+38"},
                                                   {0x1p-149f, "1.401298464324817e-45"},
                                                   {0.0f, "0.0"}};
  for (const auto& [value, expected] : numbers) {
    QuantState state{
        FourBitKind::nf4, 64, DType::f32, 64, 128, NestedState{256, double{value}}};
    EXPECT_EQ(
        quant_state_text(state),
        std::string(
            R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 128], )") +
            R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": )" + expected +
            "}");
    EXPECT_EQ(parse_quant_state(quant_state_text(state)).nested->offset, double{value});
  }
}

TEST(QuantState, RoundTrips) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (const FourBitKind kind : {FourBitKind::nf4, FourBitKind::fp4}) {
      const QuantState state{kind, 128, dtype, 5, 7, {}};
      const QuantState read = parse_quant_state(quant_state_text(state) + "   ");
      EXPECT_EQ(read.kind, kind);
      EXPECT_EQ(read.block_size, 128);
      EXPECT_EQ(read.dtype, dtype);
      EXPECT_EQ(read.out_features, 5);
      EXPECT_EQ(read.in_features, 7);
      EXPECT_FALSE(read.nested.has_value());
    }
}

TEST(QuantState, FaultsAreNamed) {
  const std::string good =
      R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [64, 128]})";
  EXPECT_EQ(fault_of(good), "none");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    return fault_of(text.replace(text.find(from), from.size(), to));
  };
  EXPECT_EQ(fault_of("{"), "quant_state: the bytes are no JSON object");
  EXPECT_EQ(fault_of("[1]"), "quant_state: the bytes are no JSON object");
  EXPECT_EQ(with("\"nf4\"", "\"af4\""), "quant_state: quant_type must be nf4 or fp4, not af4");
  EXPECT_EQ(with("\"nf4\"", "4"), "quant_state: quant_type must be a string");
  EXPECT_EQ(with("blocksize", "block_size"), "quant_state: block_size is unknown");
  EXPECT_EQ(with("\"blocksize\": 64, ", ""), "quant_state: blocksize is missing");
  EXPECT_EQ(with("64,", "48,"), "quant_state: blocksize must be a power of two from 32 to 4096");
  EXPECT_EQ(with("64,", "-1,"), "quant_state: blocksize must be a positive integer");
  EXPECT_EQ(with("float32", "float64"),
            "quant_state: dtype must be float32, float16 or bfloat16, not float64");
  EXPECT_EQ(with("[64, 128]", "[64]"), "quant_state: shape must be [out_features, in_features]");
  EXPECT_EQ(with("[64, 128]", "[64, 0]"), "quant_state: shape must be a positive integer");
  EXPECT_EQ(with("}", R"(, "nested_offset": 1.0})"), "quant_state: nested_blocksize is missing");
  EXPECT_EQ(with("}", R"(, "nested_blocksize": 256})"), "quant_state: nested_offset is missing");
  EXPECT_EQ(with("}", R"(, "nested_blocksize": 256, "nested_offset": "x"})"),
            "quant_state: nested_offset must be a number");
}

class BnbFormatTest : public BackendTest {
 protected:
  std::vector<PackedTensor> quantize(const std::vector<float>& w, std::int64_t out, std::int64_t in,
                                     const FourBitSettings& settings) {
    const auto on_device = upload_as(w, out, in);
    const Array<float> absmax(1, block_count(out * in, settings.block_size), stream);
    const Array<std::uint8_t> packed(1, (out * in + 1) / 2, stream);
    quantize_blocks(on_device.view, settings.kind, settings.block_size, absmax, packed, stream);
    return pack_four_bit("m.q", out, in, settings, packed, absmax, stream);
  }
  template <class T>
  Array<T> on_device(const PackedTensor& tensor) {
    const auto count = static_cast<std::int64_t>(tensor.data.bytes() / sizeof(T));
    Array<T> array(1, count, stream);
    copy_to_device(array.view.data, tensor.data.data(), tensor.data.bytes(), stream);
    return array;
  }
};

TEST_P(BnbFormatTest, ShapesAreKnownBefore) {
  for (const FourBitKind kind : {FourBitKind::nf4, FourBitKind::fp4})
    for (const bool double_quant : {false, true})
      for (const DType storage : {DType::u8, DType::bf16, DType::f16, DType::f32})
        for (const auto& [out, in] :
             {std::pair<std::int64_t, std::int64_t>{24, 40}, {1, 8}, {96, 200}}) {
          const FourBitSettings settings{kind, 64, double_quant, storage, DType::bf16};
          const auto names = four_bit_tensors("m.q", out, in, settings);
          const auto tensors = quantize(random_normal(out * in, 7, 0.02f), out, in, settings);
          ASSERT_EQ(tensors.size(), names.size());
          for (std::size_t i = 0; i < names.size(); ++i) {
            EXPECT_EQ(tensors[i].info.name, names[i].name);
            EXPECT_EQ(tensors[i].info.dtype, names[i].dtype);
            EXPECT_EQ(tensors[i].info.shape, names[i].shape);
            std::int64_t elements = 1;
            for (const std::int64_t size : names[i].shape) elements *= size;
            EXPECT_EQ(static_cast<std::int64_t>(tensors[i].data.bytes()),
                      elements * static_cast<std::int64_t>(size_of(names[i].dtype)));
          }
          EXPECT_EQ(names[0].shape,
                    (std::vector<std::int64_t>{
                        out * in / 2 / static_cast<std::int64_t>(size_of(storage)), 1}));
          const QuantState state = parse_quant_state(text_of(tensors.back()));
          EXPECT_EQ(state.out_features, out);
          EXPECT_EQ(state.in_features, in);
          EXPECT_EQ(state.nested.has_value(), double_quant);
        }
  EXPECT_THROW(
      four_bit_tensors("m.q", 3, 2, {FourBitKind::nf4, 64, false, DType::bf16, DType::bf16}),
      std::invalid_argument);
}

TEST_P(BnbFormatTest, ReadsBackWhatItWrote) {
  const std::int64_t out = 96;
  const std::int64_t in = 200;
  const auto w = random_normal(out * in, 8, 0.02f);
  for (const FourBitKind kind : {FourBitKind::nf4, FourBitKind::fp4})
    for (const bool double_quant : {false, true})
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const auto tensors = quantize(w, out, in, {kind, 64, double_quant, DType::u8, dtype});
        const QuantState state = parse_quant_state(text_of(tensors.back()));
        const auto packed = on_device<std::uint8_t>(tensors[0]);
        const Array<float> weight(out, in, stream);
        if (double_quant) {
          const auto absmax = on_device<std::uint8_t>(tensors[1]);
          const auto nested_absmax = on_device<float>(tensors[3]);
          const auto map = on_device<float>(tensors[4]);
          unpack_four_bit({packed, absmax.view, nested_absmax, map}, state, weight.view, stream);
        } else {
          const auto absmax = on_device<float>(tensors[1]);
          unpack_four_bit({packed, absmax.view, {}, {}}, state, weight.view, stream);
        }
        const auto back = download_as(weight.view);
        const FourBitTable table = four_bit_table(kind);
        double widest = 0.0;  // between neighbouring values
        for (std::size_t i = 0; i < 15; ++i)
          widest = std::max(widest, double{table.value[table.ordered[i + 1]]} -
                                        double{table.value[table.ordered[i]]});
        for (std::int64_t b = 0; b < out * in; b += 64) {
          double absmax = 0.0;
          for (std::int64_t i = b; i < std::min(b + 64, out * in); ++i)
            absmax = std::max(absmax, std::fabs(double{w[i]}));
          // Half the widest step; double quantization moves absmax by a few hundredths (half a step
          // of the map), bf16 by 2^-9.
          const double tolerance = absmax * (widest / 2 + 1e-6 + (double_quant ? 0.02 : 0.0) +
                                             (dtype == DType::bf16 ? 0x1p-9 : 0.0));
          for (std::int64_t i = b; i < std::min(b + 64, out * in); ++i) {
            ASSERT_NEAR(back[i], w[i], tolerance);
            if (dtype == DType::bf16) {
              ASSERT_EQ(back[i], to_float(to_bf16(back[i])));
            }
          }
        }
      }
}

TEST_P(BnbFormatTest, NotFiniteWeightsAreRefused) {
  std::vector<float> w(8 * 64, 0.1f);
  w[100] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(quantize(w, 8, 64, {}), std::invalid_argument);
  EXPECT_THROW(quantize(w, 8, 64, {FourBitKind::nf4, 64, true, DType::u8, DType::bf16}),
               std::invalid_argument);
  w[100] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(quantize(w, 8, 64, {}), std::invalid_argument);
  EXPECT_THROW(quantize(w, 8, 64, {FourBitKind::nf4, 64, true, DType::u8, DType::bf16}),
               std::invalid_argument);
}

TEST(BnbConfig, HasTransformersKeys) {
  const auto nf4 =
      bnb_config_json({FourBitSettings{FourBitKind::nf4, 64, true, DType::bf16, DType::bf16},
                       DType::bf16,
                       {"lm_head"}});
  EXPECT_EQ(nf4["quant_method"], "bitsandbytes");
  EXPECT_EQ(nf4["load_in_4bit"], true);
  EXPECT_EQ(nf4["load_in_8bit"], false);
  EXPECT_EQ(nf4["bnb_4bit_quant_type"], "nf4");
  EXPECT_EQ(nf4["bnb_4bit_use_double_quant"], true);
  EXPECT_EQ(nf4["bnb_4bit_compute_dtype"], "bfloat16");
  EXPECT_EQ(nf4["bnb_4bit_quant_storage"], "bfloat16");
  EXPECT_EQ(nf4["llm_int8_skip_modules"], nlohmann::json::array({"lm_head"}));
  EXPECT_TRUE(nf4["llm_int8_threshold"].is_number_float());  // an integer is refused
}

INSTANTIATE_TEST_SUITE_P(Backends, BnbFormatTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
