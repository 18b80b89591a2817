// One linear against GPTQModel's results on it (shared/oracles/gptq_layer.safetensors,
// shared/tools/make_gptq_layer.py).
#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

#include "kernels/diagonal.h"
#include "kernels/factor.h"
#include "kernels/gptq_sweep.h"
#include "kernels/hessian.h"
#include "stages/column_order.h"
#include "tests/kernels/backends.h"
#include "tests/paths.h"

namespace qpipe {
namespace {

// As much of a safetensors reader as a trusted file needs.
class Oracle {
 public:
  explicit Oracle(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    std::uint64_t length = 0;
    std::memcpy(&length, bytes_.data(), sizeof length);
    header_ = nlohmann::json::parse(bytes_.begin() + 8,
                                    bytes_.begin() + 8 + static_cast<std::ptrdiff_t>(length));
    data_ = 8 + length;
  }
  template <class T>
  std::vector<T> read(const std::string& name) const {
    const auto offsets = header_.at(name).at("data_offsets").get<std::vector<std::size_t>>();
    std::vector<T> values((offsets[1] - offsets[0]) / sizeof(T));
    std::memcpy(values.data(), bytes_.data() + data_ + offsets[0], offsets[1] - offsets[0]);
    return values;
  }

 private:
  std::string bytes_;
  nlohmann::json header_;
  std::size_t data_ = 0;
};

enum class Order { original, descending, group_aware };

struct Setting {
  const char* name;
  int bits;
  bool symmetric;
  std::int64_t group_size;
  Order order;
};

class GptqLayerTest : public BackendTest {};

TEST_P(GptqLayerTest, AtLeastAsGoodAsThePeer) {
  const std::string path = (shared_folder() / "oracles/gptq_layer.safetensors").string();
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no oracle: " << path;
  const Oracle oracle(path);
  constexpr std::int64_t rows = 96;
  constexpr std::int64_t d = 256;
  constexpr std::int64_t tokens = 1024;
  const auto w = oracle.read<float>("W");
  const auto x = oracle.read<float>("X");

  const TensorArray x_device = upload(x, tokens, d);
  const Array<float> maximum = upload_as(std::vector<float>(d), 1, d);
  column_max_abs(x_device, maximum, stream);
  const auto host_maximum = download_as(maximum.view);
  std::vector<std::int32_t> host_exponent(d);
  hessian_exponents({host_maximum.data(), 1, d}, {host_exponent.data(), 1, d});
  const Array<std::int32_t> exponent = upload_as(host_exponent, 1, d);
  const Array<std::int64_t> sum = upload_as(std::vector<std::int64_t>(d * d), d, d);
  const Array<float> h(d, d, stream);
  accumulate_hessian(x_device, exponent, 10, 0, sum, stream);
  finish_hessian(sum, exponent, 10, tokens, 0, h, stream);
  const Array<float> diagonal_device(1, d, stream);
  diagonal(h, diagonal_device, stream);
  auto diagonal_host = download_as(diagonal_device.view);
  std::vector<std::uint8_t> dead(d);
  double mean = 0.0;
  for (std::int64_t i = 0; i < d; ++i) {
    dead[i] = diagonal_host[i] == 0.0f;
    if (dead[i] != 0) diagonal_host[i] = 1.0f;
    mean += diagonal_host[i] / static_cast<double>(d);
  }
  EXPECT_EQ(std::accumulate(dead.begin(), dead.end(), 0), 1);
  EXPECT_EQ(int{dead[7]}, 1);
  const Array<std::uint8_t> dead_device = upload_as(dead, 1, d);
  const Array<float> w_device = upload_as(w, rows, d);

  for (const Setting& setting : {Setting{"sym4-g64", 4, true, 64, Order::original},
                                 Setting{"asym4-g64", 4, false, 64, Order::original},
                                 Setting{"sym4-col", 4, true, d, Order::original},
                                 Setting{"sym4-g64-desc", 4, true, 64, Order::descending},
                                 Setting{"sym4-g64-gar", 4, true, 64, Order::group_aware},
                                 Setting{"asym3-g128", 3, false, 128, Order::original},
                                 Setting{"asym2-g32", 2, false, 32, Order::original},
                                 Setting{"sym8-g128-desc", 8, true, 128, Order::descending}}) {
    SCOPED_TRACE(setting.name);
    std::vector<std::int32_t> perm(d);
    std::iota(perm.begin(), perm.end(), 0);
    if (setting.order == Order::descending) perm = act_order(diagonal_host);
    if (setting.order == Order::group_aware)
      perm = group_aware_order(diagonal_host, setting.group_size);
    const std::int64_t groups = d / setting.group_size;

    const Array<std::int32_t> perm_device = upload_as(perm, 1, d);
    const Array<float> ordered(rows, d, stream);
    gather_columns(w_device.view, perm_device, dead_device, ordered, stream);
    const Array<float> n(d, d, stream);
    const Array<float> pivot(1, d, stream);
    ASSERT_TRUE(factor(h, perm_device, 0.01 * mean, n, pivot, stream));
    const Array<float> scale(rows, groups, stream);
    const Array<std::uint8_t> zero(rows, groups, stream);
    const Array<std::uint8_t> code(rows, d, stream);
    const Array<std::uint8_t> scattered(rows, d, stream);
    const Array<float> loss(1, rows, stream);
    gptq_sweep(ordered, n, pivot,
               {{setting.bits, setting.symmetric, 0.0f}, setting.group_size, false}, {}, scale,
               zero, code, loss, stream);
    scatter_columns(code, perm_device, scattered, stream);
    std::vector<std::int32_t> group_of(d);
    for (std::int64_t k = 0; k < d; ++k)
      group_of[perm[k]] = static_cast<std::int32_t>(k / setting.group_size);
    const Array<std::int32_t> group_device = upload_as(group_of, 1, d);
    const Array<float> restored(rows, d, stream);
    dequantize(scattered, scale, zero, group_device, restored.view, stream);

    const auto q = download_as(restored.view);
    double squares = 0.0;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t r = 0; r < rows; ++r) {
        double y = 0.0;
        for (std::int64_t c = 0; c < d; ++c)
          y += static_cast<double>(x[t * d + c]) *
               (static_cast<double>(q[r * d + c]) - w[r * d + c]);
        squares += y * y;
      }
    const double mse = squares / static_cast<double>(tokens * rows);
    const std::string name = setting.name;
    const double peer = oracle.read<double>(name + ".mse")[0];
    RecordProperty(name, std::to_string(mse / peer));
    EXPECT_LE(mse, 1.02 * peer) << "ratio " << mse / peer;

    // Σ pivot² (v − q)² is the damped quadratic form: at least the plain error, and no more than
    // the damping adds.
    const auto losses = download_as(loss.view);
    double total_loss = 0.0;
    double distance = 0.0;
    for (const float value : losses) total_loss += value;
    for (std::int64_t i = 0; i < rows * d; ++i) {
      const double miss = dead[i % d] != 0 ? 0.0 : static_cast<double>(w[i]) - q[i];
      distance += miss * miss;
    }
    EXPECT_NEAR(total_loss / rows, mse + 0.01 * mean * distance / rows, 1e-3 * mse)
        << "damped quadratic form";

    std::vector<std::int32_t> stored_group = group_of;
    if (setting.order == Order::group_aware)  // groups are stored where their columns are
      for (std::int32_t& group : stored_group)
        group = static_cast<std::int32_t>(perm[group * setting.group_size] / setting.group_size);
    EXPECT_EQ(stored_group, oracle.read<std::int32_t>(name + ".g_idx"));
    // The groups of the first 128 columns to be solved (one group per row: all) see the same
    // weights in both programs, so their grids are equal but for the rounding of the scale to
    // float16, which can move −lo/scale across a tie. (Float32 of the peer: 2^-20 at a boundary.)
    const auto scales = download_as(scale.view);
    const auto zeros = download_as(zero.view);
    const auto peer_scale = oracle.read<float>(name + ".scale");
    const auto peer_zero = oracle.read<float>(name + ".zero");
    ASSERT_EQ(peer_scale.size(), scales.size());
    std::int64_t compared = 0;
    std::int64_t different = 0;
    for (std::int64_t g = 0; g < std::max<std::int64_t>(1, 128 / setting.group_size); ++g) {
      // act_group_aware: the peer stores the grids of a group where the group's columns are.
      const std::int64_t peer_g = setting.order == Order::group_aware
                                      ? perm[g * setting.group_size] / setting.group_size
                                      : g;
      for (std::int64_t r = 0; r < rows; ++r) {
        ++compared;
        const float peer_value = peer_scale[r * groups + peer_g];
        if (scales[r * groups + g] != to_float(to_f16(peer_value)) ||
            static_cast<float>(zeros[r * groups + g]) != peer_zero[r * groups + peer_g]) {
          ++different;
          EXPECT_NEAR(scales[r * groups + g], peer_value, peer_value * 0x1p-10)
              << "row " << r << ", group " << g;
          EXPECT_NEAR(static_cast<float>(zeros[r * groups + g]), peer_zero[r * groups + peer_g],
                      1.0f)
              << "row " << r << ", group " << g;
        }
      }
    }
    EXPECT_LE(different, compared / 50);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, GptqLayerTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
