// solve(): column orders, groups and what is stored, on any number of ranks; and the packed tensors
// read back.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/activation.h"
#include "kernels/diagonal.h"
#include "stages/formats/gptq_format.h"
#include "stages/solve.h"

namespace qpipe {
namespace {

constexpr std::int64_t out_features = 96;
constexpr std::int64_t in_features = 256;
constexpr std::int64_t tokens = 512;

struct Problem {
  std::vector<float> w, x, h;
};

Problem make_problem() {
  std::mt19937 generator(11);
  std::normal_distribution<float> normal;
  Problem p;
  p.w.resize(out_features * in_features);
  p.x.resize(tokens * in_features);
  p.h.resize(in_features * in_features);
  for (float& v : p.w) v = normal(generator) * 0.05f;
  for (std::int64_t t = 0; t < tokens; ++t) {
    float shared = normal(generator);
    for (std::int64_t k = 0; k < in_features; ++k)
      p.x[t * in_features + k] = (normal(generator) + shared) * (k % 37 == 0 ? 6.0f : 1.0f);
  }
  for (std::int64_t t = 0; t < tokens; ++t) p.x[t * in_features + 5] = 0.0f;  // a dead column
  for (std::int64_t i = 0; i < in_features; ++i)
    for (std::int64_t j = 0; j < in_features; ++j) {
      double sum = 0.0;
      for (std::int64_t t = 0; t < tokens; ++t)
        sum += static_cast<double>(p.x[t * in_features + i]) * p.x[t * in_features + j];
      p.h[i * in_features + j] = static_cast<float>(sum / tokens);
    }
  return p;
}

// (1/out) Σ Δw H Δwᵀ without damping.
double output_error(const Problem& p, const std::vector<float>& q) {
  double total = 0.0;
  for (std::int64_t n = 0; n < out_features; ++n)
    for (std::int64_t i = 0; i < in_features; ++i)
      for (std::int64_t j = 0; j < in_features; ++j)
        total += (static_cast<double>(q[n * in_features + i]) - p.w[n * in_features + i]) *
                 p.h[i * in_features + j] *
                 (static_cast<double>(q[n * in_features + j]) - p.w[n * in_features + j]);
  return total / out_features;
}

class Solve : public testing::TestWithParam<Backend> {
 protected:
  Solve() : stream(GetParam(), 0), comm(stream, {std::chrono::seconds(60), true}) {
    hessian.matrix = Array<float>(in_features, in_features, stream);
    copy_to_device(hessian.matrix.view.data, problem.h.data(), problem.h.size() * sizeof(float),
                   stream);
    for (std::int64_t i = 0; i < in_features; ++i)
      hessian.diagonal.push_back(problem.h[i * in_features + i]);
    weight = Array<float>(out_features, in_features, stream);
    copy_to_device(weight.view.data, problem.w.data(), problem.w.size() * sizeof(float), stream);
    linear.name = "layer.linear";
    linear.stored = weight.view;
  }

  QuantizedLinear solved(const LinearSettings& settings) {
    return std::move(solve(&hessian, {&linear}, {settings}, comm, stream).at(0));
  }

  std::vector<float> dequantized(const QuantizedLinear& q) {
    Array<float> result(out_features, in_features, stream);
    dequantize_into(q, result.view, stream);
    return download(result.view);
  }

  std::vector<float> download(Matrix<float> matrix) {
    std::vector<float> values(static_cast<std::size_t>(matrix.size()));
    copy_to_host(values.data(), matrix.data, values.size() * sizeof(float), stream);
    return values;
  }

  // Packs, uploads the packed tensors and dequantizes them as a loader would.
  std::vector<float> read_back(const QuantizedLinear& q, GptqFormat format) {
    std::vector<PackedTensor> packed = pack_gptq("m", q, format, stream);
    std::vector<Buffer> memory;
    for (const PackedTensor& tensor : packed) {
      memory.emplace_back(tensor.data.bytes(), stream);
      copy_to_device(memory.back().data(), tensor.data.data(), tensor.data.bytes(), stream);
    }
    const auto words = [&](std::size_t i) {
      return Matrix<const std::uint32_t>(static_cast<const std::uint32_t*>(memory[i].data()),
                                         packed[i].info.shape[0], packed[i].info.shape[1]);
    };
    const ConstTensor scales(memory[2].data(), DType::f16, packed[2].info.shape[0],
                             packed[2].info.shape[1]);
    const Matrix<const std::int32_t> g_idx(static_cast<const std::int32_t*>(memory[3].data()), 1,
                                           packed[3].info.shape[0]);
    Array<float> result(out_features, in_features, stream);
    unpack_gptq({words(0), words(1), scales, g_idx}, format, result.view, stream);
    return download(result.view);
  }

  Problem problem = make_problem();
  Stream stream;
  Comm comm;
  Hessian hessian;
  Array<float> weight;
  Linear linear;
};

std::vector<LinearSettings> variants() {
  LinearSettings base;
  base.group_size = 64;
  std::vector<LinearSettings> all(9, base);
  all[1].symmetric = false;
  all[1].bits = 3;
  all[2].desc_act = true;
  all[3].desc_act = all[3].static_groups = true;
  all[4].act_group_aware = true;
  all[5].group_size = -1;
  all[5].bits = 8;
  all[6].act_group_aware = true;
  all[6].symmetric = false;
  all[6].bits = 2;
  all[6].mse_norm = 2.4f;
  all[7].static_groups = all[7].act_group_aware = true;
  all[8].desc_act = true;
  all[8].group_size = -1;
  return all;
}

TEST_P(Solve, ReadBackIsWhatWasSolved) {
  for (const LinearSettings& settings : variants()) {
    const QuantizedLinear q = solved(settings);
    const std::vector<float> expected = dequantized(q);
    EXPECT_EQ(read_back(q, GptqFormat::v2), expected) << "bits " << settings.bits;
    if (!q.has_zero_of_zero) {
      EXPECT_EQ(read_back(q, GptqFormat::v1), expected) << "bits " << settings.bits;
    }
  }
}

// The sweep's own loss is the error of the codes that it leaves: it includes damping, hence the
// small excess.
TEST_P(Solve, ReportedErrorIsTheErrorOfTheWeights) {
  for (const LinearSettings& settings : variants()) {
    const QuantizedLinear q = solved(settings);
    const double measured = output_error(problem, dequantized(q));
    EXPECT_GT(q.mean_squared_error, 0.98 * measured);
    EXPECT_LT(q.mean_squared_error, 1.25 * measured);
    EXPECT_EQ(q.damp, settings.damp_percent);
    EXPECT_FALSE(q.fell_back);
  }
}

// In panels of 48 columns, the last one of fewer.
TEST_P(Solve, HessianThatWaitsOnTheHostGivesTheSameCodes) {
  Hessian waiting;
  waiting.diagonal = hessian.diagonal;
  for (std::int64_t begin = 0; begin < in_features; begin += 48) {
    const std::int64_t cols = std::min<std::int64_t>(48, in_features - begin);
    const std::int64_t rows = in_features - begin;
    HessianPanel& panel = waiting.panels.emplace_back(HessianPanel{
        begin, cols, HostBuffer(static_cast<std::size_t>(rows * cols) * sizeof(float), stream)});
    auto* values = reinterpret_cast<float*>(panel.memory.data());
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c)
        values[r * cols + c] = r >= c ? problem.h[(begin + r) * in_features + begin + c]
                                      : std::numeric_limits<float>::quiet_NaN();
  }
  for (const LinearSettings& settings : variants()) {
    const QuantizedLinear expected = solved(settings);
    const QuantizedLinear q = std::move(solve(&waiting, {&linear}, {settings}, comm, stream).at(0));
    EXPECT_EQ(dequantized(q), dequantized(expected));
    EXPECT_EQ(q.mean_squared_error, expected.mean_squared_error);
  }
  bring_to_device(waiting, stream);
  EXPECT_EQ(download(waiting.matrix), problem.h);
  leave_device(waiting);
  EXPECT_TRUE(waiting.matrix.empty());
}

// Linears of one input are swept together where their settings agree; each gets what it gets alone.
TEST_P(Solve, LinearsTogetherAreAsEachAlone) {
  const std::vector<std::int64_t> rows{33, 7, 40,
                                       16};  // runs of the weight's rows, ends of row blocks inside
  std::vector<Linear> parts;
  std::int64_t begin = 0;
  for (const std::int64_t count : rows) {
    Linear& part = parts.emplace_back();
    part.name = "part " + std::to_string(parts.size());
    part.stored = weight.view.row_range(begin, count);
    begin += count;
  }
  std::vector<const Linear*> linears;
  for (const Linear& part : parts) linears.push_back(&part);
  for (const LinearSettings& settings : variants())
    for (const int other : {-1, 0, 1, 3}) {  // one that is not like the others
      std::vector<LinearSettings> all(parts.size(), settings);
      if (other >= 0) all[static_cast<std::size_t>(other)].mse_norm = 2.0f;
      if (other == 1) all[1].method = Method::rtn;
      const std::vector<QuantizedLinear> together = solve(&hessian, linears, all, comm, stream);
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const QuantizedLinear alone =
            std::move(solve(&hessian, {linears[i]}, {all[i]}, comm, stream).at(0));
        const auto values = [&](const QuantizedLinear& q) {
          Array<float> result(rows[i], in_features, stream);
          dequantize_into(q, result.view, stream);
          return download(result.view);
        };
        EXPECT_EQ(values(together[i]), values(alone)) << "linear " << i << ", another is " << other;
        EXPECT_EQ(download(together[i].scale), download(alone.scale));
        EXPECT_EQ(together[i].mean_squared_error, alone.mean_squared_error);
        EXPECT_EQ(together[i].has_zero_of_zero, alone.has_zero_of_zero);
        EXPECT_EQ(together[i].group_of, alone.group_of);
      }
    }
}

TEST_P(Solve, BeatsRoundToNearest) {
  LinearSettings settings;
  settings.group_size = 64;
  const double gptq = output_error(problem, dequantized(solved(settings)));
  settings.method = Method::rtn;
  const double rtn = output_error(problem, dequantized(solved(settings)));
  EXPECT_LT(gptq, 0.6 * rtn);
}

TEST_P(Solve, GroupAwareAndStaticOrdersKeepTheTrivialGroupIndex) {
  LinearSettings settings;
  settings.group_size = 64;
  settings.act_group_aware = true;
  for (const bool static_groups : {false, true}) {
    settings.static_groups = static_groups;
    const PackedTensor g_idx = pack_gptq("m", solved(settings), GptqFormat::v1, stream).at(3);
    std::vector<std::int32_t> groups(in_features);
    std::memcpy(groups.data(), g_idx.data.data(), g_idx.data.bytes());
    for (std::int64_t k = 0; k < in_features; ++k)
      EXPECT_EQ(groups[static_cast<std::size_t>(k)], k / 64);
  }
}

TEST_P(Solve, UnfactorableHessianFallsBackToRounding) {
  Array<float> bad(in_features, in_features, stream);
  std::vector<float> values(problem.h.size(), 0.0f);
  for (std::int64_t i = 0; i < in_features; ++i)
    for (std::int64_t j = 0; j < in_features; ++j)
      values[i * in_features + j] = i == j ? 1.0f : (i / 2 == j / 2 ? 50.0f : 0.0f);  // indefinite
  copy_to_device(hessian.matrix.view.data, values.data(), values.size() * sizeof(float), stream);
  hessian.diagonal.assign(in_features, 1.0f);
  LinearSettings settings;
  settings.group_size = 64;
  const QuantizedLinear q = solved(settings);
  EXPECT_TRUE(q.fell_back);
  settings.method = Method::rtn;
  EXPECT_EQ(dequantized(q), dequantized(solved(settings)));
}

TEST_P(Solve, NonFiniteWeightIsAnError) {
  problem.w[300] = std::numeric_limits<float>::infinity();
  copy_to_device(weight.view.data, problem.w.data(), problem.w.size() * sizeof(float), stream);
  LinearSettings settings;
  settings.group_size = 64;
  try {
    solved(settings);
    FAIL() << "no error";
  } catch (const std::domain_error& error) {
    EXPECT_NE(std::string(error.what()).find("layer.linear"), std::string::npos) << error.what();
  }
}

// v1 zeros become v2 zeros field by field, 3-bit fields across word ends included.
TEST_P(Solve, ZerosOfV1BecomeV2) {
  for (const int bits : {2, 3, 4, 8}) {
    LinearSettings settings;
    settings.symmetric = false;
    settings.bits = bits;
    settings.group_size = 32;
    const QuantizedLinear q = solved(settings);
    const auto packed_zeros = [&](GptqFormat format) {
      const HostBuffer data = pack_gptq("m", q, format, stream).at(1).data;
      return std::vector<unsigned char>(data.begin(), data.end());
    };
    std::vector<unsigned char> zeros = packed_zeros(GptqFormat::v1);
    const std::vector<unsigned char> expected = packed_zeros(GptqFormat::v2);
    EXPECT_NE(zeros, expected);
    zeros_v1_to_v2(zeros, bits);
    EXPECT_EQ(zeros, expected) << "bits " << bits;
  }
}

std::vector<Backend> solve_backends() {
  std::vector<Backend> found{Backend::cpu};
  if (cuda_device_count() > 0) found.push_back(Backend::cuda);
  return found;
}

INSTANTIATE_TEST_SUITE_P(Backends, Solve, testing::ValuesIn(solve_backends()),
                         [](const testing::TestParamInfo<Backend>& tested) {
                           return tested.param == Backend::cuda ? "cuda" : "cpu";
                         });

}  // namespace
}  // namespace qpipe
