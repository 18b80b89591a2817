// Factors that all ranks of a team compute together: the bytes of a single rank, and its faults, on
// every rank. Sizes on CUDA are beyond largest_factor_of_one_rank, with a last unit and a last
// panel that are whole, ragged, and one column wide.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "stages/factor_team.h"
#include "stages/solve.h"
#include "tests/kernels/factor_checks.h"

namespace qpipe {
namespace {

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Each rank on a GPU of its own, as far as there are.
class FactorTeamTest : public testing::TestWithParam<Backend> {
 protected:
  int device() { return GetParam() == Backend::cuda ? world.rank() % cuda_device_count() : 0; }

  template <class T>
  Array<T> upload(const std::vector<T>& values, std::int64_t rows, std::int64_t cols) {
    Array<T> array(rows, cols, stream);
    copy_to_device(array.view.data, values.data(), values.size() * sizeof(T), stream);
    return array;
  }

  template <class T>
  std::vector<T> download(Matrix<T> matrix) {
    std::vector<T> values(static_cast<std::size_t>(matrix.size()));
    copy_to_host(values.data(), matrix.data, values.size() * sizeof(T), stream);
    return values;
  }

  // in_place: h lies in n's memory.
  FactorResult run(const std::vector<float>& h, const std::vector<std::int32_t>& perm,
                   bool in_place, const FactorTeam& team) {
    const auto d = static_cast<std::int64_t>(perm.size());
    const Array<std::int32_t> perm_device = upload(perm, 1, d);
    const Array<float> given = upload(h, d, d);
    const Array<float> n = in_place ? Array<float>() : Array<float>(d, d, stream);
    const Matrix<float> result = in_place ? given.view : n.view;
    const Array<float> pivot(1, d, stream);
    const std::size_t in_use = stream.bytes_in_use();
    const std::size_t peak = stream.bytes_peak();
    const bool success = factor(given, perm_device, 0.01, result, pivot, team, stream);
    EXPECT_EQ(stream.bytes_in_use(), in_use);
    if (stream.on_cuda() && stream.bytes_peak() > peak) {
      EXPECT_LE(static_cast<std::int64_t>(stream.bytes_peak() - in_use),
                factor_workspace_bytes(d, team.ranks))
          << d;
    }
    return {success, download(result), download(pivot.view)};
  }

  FactorTeam team() { return factor_team(comm, stream); }

  Stream control{Backend::cpu, 0};
  Comm world{control, {std::chrono::seconds(300), false}};
  Stream stream{GetParam(), device()};
  Comm comm{stream, {std::chrono::seconds(300), true}};
};

TEST_P(FactorTeamTest, GivesTheBytesOfOneRank) {
  const std::vector<std::int64_t> sizes = stream.on_cuda()
                                              ? std::vector<std::int64_t>{8193, 9000, 12288}
                                              : std::vector<std::int64_t>{300};
  for (const std::int64_t d : sizes)
    for (const bool in_place : {false, true}) {
      const std::string what = std::to_string(d) + (in_place ? ", in place" : "");
      const auto h = low_rank_hessian(d, 21, 0.5f);
      const std::vector<std::int32_t> perm = in_place ? identity(d) : shuffled(d);
      const FactorResult alone = run(h, perm, in_place, {});
      EXPECT_TRUE(alone.success) << what;
      for (int time = 0; time < 2; ++time) {
        const FactorResult together = run(h, perm, in_place, team());
        EXPECT_TRUE(together.success) << what;
        EXPECT_TRUE(same_bytes(together.pivot, alone.pivot)) << what;
        EXPECT_TRUE(same_bytes(together.n, alone.n)) << what;
      }
    }
}

// 4 times a float32 factor's residual is what the method promises; float16's would be 10³ times.
TEST_P(FactorTeamTest, IsAsExactAsSinglePrecision) {
  const std::int64_t d = stream.on_cuda() ? 9000 : 300;
  for (const float mean : {0.0f, 0.5f}) {
    auto h = low_rank_hessian(d, 22, mean);
    const FactorResult together = run(h, identity(d), false, team());
    EXPECT_TRUE(together.success);
    if (!comm.root()) continue;  // all have the same
    for (std::int64_t i = 0; i < d; ++i) h[static_cast<std::size_t>(i * (d + 1))] += 0.01f;
    const FactorResult single = single_precision_factor(h, d);
    EXPECT_TRUE(single.success);
    EXPECT_LE(residual(h, together), 4.0 * residual(h, single));
  }
}

// An entry of the diagonal that is too small makes some pivot fail: in the first unit, in the
// midst, in the last column. The ranks stay in step.
TEST_P(FactorTeamTest, AllRanksRefuseTheSame) {
  const std::int64_t d = stream.on_cuda() ? 9000 : 300;
  const auto good = low_rank_hessian(d, 23);
  const FactorResult alone = run(good, identity(d), false, {});
  EXPECT_TRUE(alone.success);
  for (const std::int64_t eliminated : {d / 10, d / 2, d - 1}) {
    const std::int64_t k = d - 1 - eliminated;
    auto bad = good;
    bad[static_cast<std::size_t>(k * (d + 1))] *= 0.01f;
    EXPECT_FALSE(run(bad, identity(d), false, team()).success) << eliminated;
    EXPECT_TRUE(same_bytes(run(good, identity(d), false, team()).n, alone.n)) << eliminated;
  }
}

// One factor, and two: of a team of three or more each is of all ranks, two ranks take one each.
// damp: the first tries fail.
TEST_P(FactorTeamTest, SolveGivesTheCodesOfOneRank) {
  const std::int64_t d = stream.on_cuda() ? 9216 : 320;
  const std::int64_t rows = 64;
  auto h = low_rank_hessian(d, 24, 0.5f);
  // What is left of entry k of the diagonal when all others are eliminated is S² D of
  // low_rank_hessian: a tenth of the mean is missing.
  const std::int64_t k = d / 3 / 7 * 7 + 6;
  double mean = 0.0;
  for (std::int64_t i = 0; i < d; ++i)
    mean += h[static_cast<std::size_t>(i * (d + 1))] / static_cast<double>(d);
  h[static_cast<std::size_t>(k * (d + 1))] -=
      static_cast<float>(49.0 * (0.5 + 0.1 * static_cast<double>(k % 5)) + 0.1 * mean);
  std::mt19937 generator(25);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::vector<float> w(static_cast<std::size_t>(rows * d));
  for (float& value : w) value = normal(generator);

  Hessian hessian;
  hessian.matrix = upload(h, d, d);
  for (std::int64_t i = 0; i < d; ++i)
    hessian.diagonal.push_back(h[static_cast<std::size_t>(i * (d + 1))]);
  const Array<float> weight = upload(w, rows, d);
  Linear linear;
  linear.name = "layer.linear";
  linear.stored = weight.view;
  std::vector<LinearSettings> settings(2);
  for (LinearSettings& s : settings) {
    s.group_size = 64;
    s.damp_percent = 1e-9;
    s.damp_increment = 0.3;
  }
  settings[1].desc_act = true;

  Comm alone(comm, comm.rank(), stream);
  ASSERT_EQ(alone.size(), 1);
  for (const std::size_t factors : {std::size_t{1}, std::size_t{2}}) {
    const std::vector<const Linear*> linears(factors, &linear);
    const std::vector<LinearSettings> wanted(
        settings.begin(), settings.begin() + static_cast<std::ptrdiff_t>(factors));
    const auto one = solve(&hessian, linears, wanted, alone, stream);
    const auto all = solve(&hessian, linears, wanted, comm, stream);
    for (std::size_t i = 0; i < factors; ++i) {
      EXPECT_TRUE(same_bytes(download(all[i].code.view), download(one[i].code.view)))
          << factors << ", " << i;
      EXPECT_TRUE(same_bytes(download(all[i].scale.view), download(one[i].scale.view)))
          << factors << ", " << i;
      EXPECT_TRUE(same_bytes(download(all[i].zero.view), download(one[i].zero.view)))
          << factors << ", " << i;
      EXPECT_EQ(all[i].mean_squared_error, one[i].mean_squared_error);
      EXPECT_EQ(all[i].damp, one[i].damp);
      EXPECT_GT(one[i].damp, 0.1);
      EXPECT_FALSE(one[i].fell_back);
    }
  }
}

TEST(FactorsInTeam, WhereItPays) {
  EXPECT_FALSE(factors_in_team(1, 28672, 1));
  EXPECT_TRUE(factors_in_team(1, 28672, 2));
  EXPECT_FALSE(factors_in_team(2, 28672, 2));  // one each
  EXPECT_TRUE(factors_in_team(2, 28672, 4));
  EXPECT_FALSE(factors_in_team(1, 8192, 8));
  EXPECT_FALSE(factors_in_team(8, 28672, 4));
}

INSTANTIATE_TEST_SUITE_P(Backends, FactorTeamTest, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace qpipe
