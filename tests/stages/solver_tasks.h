// Small random linears with Hessians, as tasks for Solvers.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "stages/solvers.h"
#include "stages/transfer.h"
#include "tests/kernels/backends.h"

namespace qpipe {

inline constexpr std::int64_t out = 48;
inline constexpr std::int64_t in = 64;

struct Expert {
  Linear linear;
  TensorArray weight;
  Hessian hessian;
  LinearSettings settings;
};

// H = X Xᵀ + 1 of random X.
inline Expert make_expert(unsigned seed, Stream& stream) {
  Expert expert;
  expert.linear.name = "expert" + std::to_string(seed);
  expert.weight = TensorArray(DType::f32, out, in, stream);
  const std::vector<float> weight = random_normal(out * in, seed);
  copy_to_device(expert.weight.view.data, weight.data(), expert.weight.memory.bytes(), stream);
  expert.linear.stored = expert.weight.view;
  const std::vector<float> x = random_normal(in * in, seed + 1000);
  std::vector<float> h(static_cast<std::size_t>(in * in));
  const auto at = [](std::int64_t i, std::int64_t j) {
    return static_cast<std::size_t>(i * in + j);
  };
  for (std::int64_t i = 0; i < in; ++i)
    for (std::int64_t j = 0; j < in; ++j) {
      for (std::int64_t k = 0; k < in; ++k) h[at(i, j)] += x[at(i, k)] * x[at(j, k)];
      if (i == j) h[at(i, j)] += 1.0f;
    }
  expert.hessian.matrix = Array<float>(in, in, stream);
  copy_to_device(expert.hessian.matrix.view.data, h.data(), h.size() * sizeof(float), stream);
  for (std::int64_t i = 0; i < in; ++i) expert.hessian.diagonal.push_back(h[at(i, i)]);
  expert.hessian.tokens = in;
  expert.settings.group_size = 16;
  expert.settings.desc_act = seed % 2 == 0;
  return expert;
}

inline std::vector<std::unique_ptr<Expert>> make_experts(int count, Stream& stream) {
  std::vector<std::unique_ptr<Expert>> experts;
  for (int i = 0; i < count; ++i)
    experts.push_back(std::make_unique<Expert>(make_expert(static_cast<unsigned>(i), stream)));
  return experts;
}

inline GroupToSolve task_of(Expert& expert) {
  GroupToSolve task;
  task.solve = [&expert](Comm& alone, Stream& stream) {
    return solve(&expert.hessian, {&expert.linear}, {expert.settings}, alone, stream);
  };
  task.outline = [&expert] {
    std::vector<QuantizedLinear> linears;
    linears.push_back(outline_of(expert.linear, expert.settings));
    return linears;
  };
  return task;
}

inline std::vector<GroupToSolve> tasks_of(const std::vector<std::unique_ptr<Expert>>& experts,
                                          int ranks) {
  std::vector<GroupToSolve> result;
  for (const auto& expert : experts) {
    result.push_back(task_of(*expert));
    result.back().owner = owner_of_group(result.size() - 1, ranks);
  }
  return result;
}

// with_codes: or none are there.
inline void expect_equal(const std::vector<QuantizedLinear>& got,
                         const std::vector<QuantizedLinear>& expected, bool with_codes,
                         Stream& stream) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto equal = [&](const auto& a, const auto& b) {
      return download_matrix(a.view, stream) == download_matrix(b.view, stream);
    };
    if (with_codes) {
      EXPECT_TRUE(equal(got[i].code, expected[i].code));
      EXPECT_TRUE(equal(got[i].scale, expected[i].scale));
      EXPECT_TRUE(equal(got[i].zero, expected[i].zero));
      const Array<float> weight(expected[i].code.view.rows, expected[i].code.view.cols, stream);
      const Array<float> wanted(weight.view.rows, weight.view.cols, stream);
      dequantize_into(got[i], weight.view, stream);
      dequantize_into(expected[i], wanted.view, stream);
      EXPECT_TRUE(equal(weight, wanted));
    } else {
      EXPECT_TRUE(got[i].code.empty());
      EXPECT_EQ(got[i].code.view.cols, expected[i].code.view.cols);
    }
    EXPECT_EQ(got[i].group_of, expected[i].group_of);
    EXPECT_EQ(got[i].stored_group, expected[i].stored_group);
    EXPECT_EQ(got[i].mean_squared_error, expected[i].mean_squared_error);
    EXPECT_EQ(got[i].damp, expected[i].damp);
    EXPECT_EQ(got[i].settings.desc_act, expected[i].settings.desc_act);
    EXPECT_GT(got[i].mean_squared_error, 0.0);
  }
}

// Solves all of them in two waves, and compares each with solve() of it alone.
inline void expect_those_of_each_alone(int groups, int threads, Comm& comm, Stream& stream) {
  const auto experts = make_experts(groups, stream);
  Comm alone(stream);
  Solvers solvers(stream, threads);
  // The queues are used again.
  for (const CodesFor codes_for :
       {CodesFor::all_ranks, CodesFor::other_ranks, CodesFor::nobody, CodesFor::all_ranks}) {
    SolvedGroups solved(tasks_of(experts, comm.size()), codes_for, solvers, comm, stream);
    for (std::size_t i = 0; i < experts.size(); ++i) {
      Expert& expert = *experts[i];
      const bool own = owner_of_group(i, comm.size()) == comm.rank();
      expect_equal(
          solved.next(), solve(&expert.hessian, {&expert.linear}, {expert.settings}, alone, stream),
          codes_for == CodesFor::all_ranks || (codes_for == CodesFor::other_ranks && !own), stream);
    }
  }
}

// Groups 5 and 7 have a fault: all ranks are told of the first.
inline void expect_first_fault(int threads, Comm& comm, Stream& stream) {
  const auto experts = make_experts(12, stream);
  std::vector<GroupToSolve> all = tasks_of(experts, comm.size());
  for (const std::size_t bad : {5, 7})
    all[bad].solve = [bad](Comm&, Stream&) -> std::vector<QuantizedLinear> {
      throw std::domain_error("group " + std::to_string(bad));
    };
  Solvers solvers(stream, threads);
  SolvedGroups solved(std::move(all), CodesFor::all_ranks, solvers, comm, stream);
  for (int i = 0; i < 5; ++i) EXPECT_NO_THROW(solved.next());
  try {
    solved.next();
    FAIL() << "no fault";
  } catch (const std::domain_error& fault) {
    EXPECT_STREQ(fault.what(), "group 5");
  }
}

}  // namespace qpipe
