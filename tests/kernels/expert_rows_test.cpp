#include "kernels/expert_rows.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/kernels/forward_checks.h"

namespace qpipe {

namespace {

class ExpertRowsTest : public ForwardTest {
 protected:
  // Around vectors of eight elements, warps and blocks.
  const std::vector<std::int64_t> widths{1, 7, 8, 64, 257, 2056};

  static std::vector<std::int32_t> random_experts(std::int64_t pairs, std::int64_t experts,
                                                  unsigned seed) {
    std::mt19937 generator(seed);
    std::uniform_int_distribution<std::int32_t> any(0, static_cast<std::int32_t>(experts - 1));
    std::vector<std::int32_t> expert(static_cast<std::size_t>(pairs));
    for (auto& e : expert) e = any(generator);
    return expert;
  }

  struct Sorted {
    std::vector<std::int32_t> begin, source, place;
  };

  Sorted sort(const std::vector<std::int32_t>& expert, std::int64_t k, std::int64_t experts) {
    const auto pairs = static_cast<std::int64_t>(expert.size());
    const auto device = upload_as(expert, pairs / k, k);
    const Array<std::int32_t> begin(1, experts + 1, stream), source(1, pairs, stream),
        place(pairs / k, k, stream);
    sort_by_expert(device, experts, begin, source, place, stream);
    return {download_as(begin.view), download_as(source.view), download_as(place.view)};
  }

  // A permutation of the rows 0 … count.
  static std::vector<std::int32_t> shuffled(std::int64_t count, unsigned seed) {
    std::vector<std::int32_t> rows(static_cast<std::size_t>(count));
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), std::mt19937(seed));
    return rows;
  }

  std::vector<float> round_to(DType type, std::vector<float> values) const {
    return type == stream.compute_dtype() ? round_to_compute(std::move(values)) : values;
  }

  // compute type and float32: on the CPU they are one.
  std::vector<DType> types() const {
    return stream.on_cuda() ? std::vector<DType>{DType::bf16, DType::f32}
                            : std::vector<DType>{DType::f32};
  }
};

TEST_P(ExpertRowsTest, SortsByExpertAndNumber) {
  struct Shape {
    std::int64_t tokens, k, experts;
  };
  for (const Shape shape : {Shape{1, 1, 1}, Shape{5, 3, 7}, Shape{1000, 8, 64}, Shape{4097, 8, 300},
                            Shape{9000, 4, 2}, Shape{3, 2, 1000}}) {
    SCOPED_TRACE(testing::Message()
                 << shape.tokens << " x " << shape.k << ", " << shape.experts << " experts");
    const std::int64_t pairs = shape.tokens * shape.k;
    const auto expert = random_experts(pairs, shape.experts, 1);
    std::vector<std::int32_t> source(static_cast<std::size_t>(pairs));
    std::iota(source.begin(), source.end(), 0);
    std::stable_sort(source.begin(), source.end(), [&](std::int32_t a, std::int32_t b) {
      return expert[static_cast<std::size_t>(a)] < expert[static_cast<std::size_t>(b)];
    });
    std::vector<std::int32_t> place(static_cast<std::size_t>(pairs));
    for (std::size_t r = 0; r < source.size(); ++r)
      place[static_cast<std::size_t>(source[r])] = static_cast<std::int32_t>(r);
    std::vector<std::int32_t> begin;
    for (std::int64_t e = 0; e <= shape.experts; ++e)
      begin.push_back(static_cast<std::int32_t>(
          std::count_if(expert.begin(), expert.end(), [&](std::int32_t x) { return x < e; })));

    const auto sorted = sort(expert, shape.k, shape.experts);
    EXPECT_EQ(sorted.begin, begin);
    EXPECT_EQ(sorted.source, source);
    EXPECT_EQ(sorted.place, place);
  }
}

TEST_P(ExpertRowsTest, SortsWhatHasOneExpert) {
  const auto sorted = sort(std::vector<std::int32_t>(2600, 3), 2, 5);
  std::vector<std::int32_t> all(2600);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(sorted.begin, (std::vector<std::int32_t>{0, 0, 0, 0, 2600, 2600}));
  EXPECT_EQ(sorted.source, all);
  EXPECT_EQ(sorted.place, all);
}

TEST_P(ExpertRowsTest, GathersRows) {
  constexpr std::int64_t tokens = 41;
  constexpr std::int64_t k = 3;
  const auto source = shuffled(tokens * k, 2);
  const auto source_device = upload_as(source, 1, tokens * k);
  const auto weight = random_normal(tokens * k, 3);
  const auto weight_device = upload_padded(DType::f32, weight, tokens, k);
  for (const std::int64_t d : widths)
    for (const DType x_type : types())
      for (const DType y_type : types())
        for (const bool weighted : {false, true})
          for (const std::int64_t padding : {3, 8}) {  // 8: in vectors where d allows it
            SCOPED_TRACE(testing::Message()
                         << "d " << d << ", " << name_of(x_type) << " to " << name_of(y_type)
                         << (weighted ? ", weighted" : "") << ", padding " << padding);
            const auto x = round_to(x_type, random_normal(tokens * d, 1));
            const auto x_device = upload_padded(x_type, x, tokens, d, padding, padding);
            // Some columns of the list, as one expert has.
            constexpr std::int64_t first = 5;
            constexpr std::int64_t rows = tokens * k - 5 - 11;
            const auto y = poisoned_padded(y_type, rows, d, padding, padding);
            gather_rows(x_device.view, source_device.view.col_range(first, rows), k,
                        weighted ? weight_device.view.as<const float>() : Matrix<const float>{},
                        y.view, stream);
            std::vector<double> want;
            std::vector<double> tolerance;
            for (std::int64_t r = 0; r < rows; ++r) {
              const std::int32_t pair = source[static_cast<std::size_t>(first + r)];
              for (std::int64_t c = 0; c < d; ++c) {
                const double value = x[static_cast<std::size_t>(pair / k * d + c)];
                const double factor =
                    weighted ? static_cast<double>(weight[static_cast<std::size_t>(pair)]) : 1.0;
                want.push_back(factor * value);
                const bool exact = !weighted && (y_type == x_type || y_type == DType::f32);
                tolerance.push_back(
                    exact ? 0.0 : (roundoff(y_type) + 2.0 * single) * std::abs(want.back()));
              }
            }
            expect_close(download_inside(y), want, tolerance);
          }
}

TEST_P(ExpertRowsTest, CombinesRows) {
  constexpr std::int64_t tokens = 29;
  constexpr std::int64_t k = 5;
  const auto place = shuffled(tokens * k, 2);
  const auto place_device = upload_as(place, tokens, k);
  const auto weight = random_normal(tokens * k, 3);
  const auto weight_device = upload_padded(DType::f32, weight, tokens, k);
  const auto shared_weight = random_normal(tokens, 4);
  const auto shared_weight_device = upload_padded(DType::f32, shared_weight, tokens, 1);
  enum class Shared { none, plain, weighted };
  for (const std::int64_t d : widths)
    for (const DType y_type : types())
      for (const DType z_type : types())
        for (const bool weighted : {false, true})
          for (const Shared mode : {Shared::none, Shared::plain, Shared::weighted})
            for (const std::int64_t padding : {3, 8}) {
              SCOPED_TRACE(testing::Message()
                           << "d " << d << ", " << name_of(y_type) << " to " << name_of(z_type)
                           << (weighted ? ", weighted" : "") << ", shared "
                           << static_cast<int>(mode) << ", padding " << padding);
              const auto y = round_to(y_type, random_normal(tokens * k * d, 1));
              const auto shared = round_to(z_type, random_normal(tokens * d, 5));
              std::vector<double> want;
              std::vector<double> tolerance;
              for (std::int64_t t = 0; t < tokens; ++t)
                for (std::int64_t c = 0; c < d; ++c) {
                  double sum = 0.0;
                  double magnitude = 0.0;
                  const auto add = [&](double factor, double value) {
                    sum += factor * value;
                    magnitude += std::abs(factor * value);
                  };
                  for (std::int64_t s = 0; s < k; ++s) {
                    const auto slot = static_cast<std::size_t>(t * k + s);
                    add(weighted ? static_cast<double>(weight[slot]) : 1.0,
                        y[static_cast<std::size_t>(place[slot] * d + c)]);
                  }
                  if (mode != Shared::none)
                    add(mode == Shared::weighted
                            ? static_cast<double>(shared_weight[static_cast<std::size_t>(t)])
                            : 1.0,
                        shared[static_cast<std::size_t>(t * d + c)]);
                  want.push_back(sum);
                  tolerance.push_back((k + 2) * 2.0 * single * magnitude +
                                      roundoff(z_type) * std::abs(sum));
                }

              const auto y_device = upload_padded(y_type, y, tokens * k, d, padding, padding);
              const auto shared_device = upload_padded(z_type, shared, tokens, d, padding, padding);
              const auto run = [&](Tensor z) {
                combine_rows(
                    y_device.view, place_device,
                    weighted ? weight_device.view.as<const float>() : Matrix<const float>{},
                    mode == Shared::none ? ConstTensor{} : ConstTensor(shared_device.view),
                    mode == Shared::weighted ? shared_weight_device.view.as<const float>()
                                             : Matrix<const float>{},
                    z, stream);
              };
              const auto z = poisoned_padded(z_type, tokens, d, padding, padding);
              run(z.view);
              const auto apart = download_inside(z);
              expect_close(apart, want, tolerance);
              run(shared_device.view);
              EXPECT_EQ(count_different(download_inside(shared_device), apart), 0u) << "in place";
            }
}

// 2^27 + 1 is 2^27 in float32: what is lost tells the order.
TEST_P(ExpertRowsTest, AddsInTheOrderOfSlots) {
  const DType type = stream.compute_dtype();
  const auto y = upload({0x1p27f, 1.0f, -0x1p27f}, 3, 1);
  const auto shared = upload({0.5f}, 1, 1);
  const auto sum = [&](const std::vector<std::int32_t>& place) {
    const TensorArray z(type, 1, 1, stream);
    combine_rows(y, upload_as(place, 1, 3), {}, shared, {}, z, stream);
    return download(z)[0];
  };
  EXPECT_EQ(sum({0, 1, 2}), 0.5f);
  EXPECT_EQ(sum({1, 0, 2}), 0.5f);
  EXPECT_EQ(sum({0, 2, 1}), 1.5f);
}

// What is sorted, gathered and combined with weights 1 is k times each row.
TEST_P(ExpertRowsTest, GoesThereAndBack) {
  constexpr std::int64_t tokens = 300;
  constexpr std::int64_t k = 4;
  constexpr std::int64_t experts = 9;
  constexpr std::int64_t d = 72;
  const auto x = round_to_compute(random_normal(tokens * d, 1));
  const auto x_device = upload(x, tokens, d);
  const auto expert = upload_as(random_experts(tokens * k, experts, 2), tokens, k);
  const Array<std::int32_t> begin(1, experts + 1, stream), source(1, tokens * k, stream),
      place(tokens, k, stream);
  const DType type = stream.compute_dtype();
  const TensorArray rows(type, tokens * k, d, stream), z(type, tokens, d, stream);
  sort_by_expert(expert, experts, begin, source, place, stream);
  gather_rows(x_device, source, k, {}, rows, stream);
  combine_rows(rows, place, {}, {}, {}, z, stream);
  auto want = x;
  for (float& value : want) value *= 4.0f;
  EXPECT_EQ(count_different(download(z), want), 0u);
}

TEST_P(ExpertRowsTest, NaNStaysInItsRow) {
  constexpr std::int64_t d = 16;
  auto x = random_normal(3 * d, 1);
  x[d + 5] = std::numeric_limits<float>::quiet_NaN();
  const auto x_device = upload(x, 3, d);
  const TensorArray z(stream.compute_dtype(), 3, d, stream);
  combine_rows(x_device, upload_as<std::int32_t>({2, 1, 0}, 3, 1), {}, {}, {}, z, stream);
  const auto got = download(z);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i == d + 5);
}

TEST_P(ExpertRowsTest, GatesRows) {
  for (const std::int64_t d : {1, 8, 15, 16, 255, 256, 257, 2048, 4100})
    for (const std::int64_t tokens : {1, 37}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens, d " << d);
      const auto scale = static_cast<float>(2.0 / std::sqrt(static_cast<double>(d)));
      const auto x = round_to_compute(random_normal(tokens * d, 1));
      const auto w = round_to_compute(random_normal(d, 2, scale));
      std::vector<double> want;
      std::vector<double> tolerance;
      for (std::int64_t t = 0; t < tokens; ++t) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (std::int64_t c = 0; c < d; ++c) {
          const double term = static_cast<double>(x[static_cast<std::size_t>(t * d + c)]) *
                              w[static_cast<std::size_t>(c)];
          sum += term;
          magnitude += std::abs(term);
        }
        // σ' ≤ 1/4; e^x within 4 roundings.
        want.push_back(1.0 / (1.0 + std::exp(-sum)));
        tolerance.push_back(0.25 * static_cast<double>(d + 1) * single * magnitude +
                            8.0 * single * want.back());
      }
      const auto run = [&](std::int64_t padding) {
        const auto x_device = upload_padded(stream.compute_dtype(), x, tokens, d, padding, padding);
        const auto w_device = upload_padded(stream.compute_dtype(), w, 1, d, padding, padding);
        const auto g = poisoned_padded(DType::f32, tokens, 1);
        row_gate(x_device.view, w_device.view, g.view.as<float>(), stream);
        return download_inside(g);
      };
      const auto aligned = run(8);
      expect_close(aligned, want, tolerance);
      EXPECT_EQ(count_different(run(3), aligned), 0u) << "the bits depend on the alignment";
    }
}

TEST_P(ExpertRowsTest, AcceptsNoTokens) {
  const DType type = stream.compute_dtype();
  const Array<std::int32_t> expert(0, 2, stream), begin(1, 4, stream), source(1, 0, stream),
      place(0, 2, stream);
  const TensorArray x(type, 0, 8, stream), w(type, 1, 8, stream);
  const Array<float> g(0, 1, stream);
  EXPECT_NO_THROW(sort_by_expert(expert, 3, begin, source, place, stream));
  EXPECT_EQ(download_as(begin.view), (std::vector<std::int32_t>{0, 0, 0, 0}));
  EXPECT_NO_THROW(gather_rows(x, source, 2, {}, x, stream));
  EXPECT_NO_THROW(combine_rows(x, place, {}, {}, {}, x, stream));
  EXPECT_NO_THROW(row_gate(x, w, g, stream));
  EXPECT_NO_THROW(stream.synchronize());
}

TEST_P(ExpertRowsTest, RefusesInconsistentArguments) {
  const DType type = stream.compute_dtype();
  const auto expert = upload_as(std::vector<std::int32_t>(6, 0), 3, 2);
  const auto gaps = upload_as(std::vector<std::int32_t>(9, 0), 3, 3);
  const Array<std::int32_t> begin(1, 5, stream), short_begin(1, 4, stream), source(1, 6, stream),
      short_source(1, 5, stream), place(3, 2, stream), wide_place(3, 3, stream);
  const auto sort_into = [&](Matrix<const std::int32_t> expert_, Matrix<std::int32_t> begin_,
                             Matrix<std::int32_t> source_, Matrix<std::int32_t> place_) {
    sort_by_expert(expert_, 4, begin_, source_, place_, stream);
  };
  EXPECT_NO_THROW(sort_into(expert, begin, source, place));
  EXPECT_THROW(sort_into(expert, short_begin, source, place), std::invalid_argument);
  EXPECT_THROW(sort_into(expert, begin, short_source, place), std::invalid_argument);
  EXPECT_THROW(sort_into(expert, begin, source, wide_place), std::invalid_argument);
  EXPECT_THROW(sort_into(gaps.view.col_range(0, 2), begin, source, place), std::invalid_argument);
  EXPECT_THROW(sort_into(expert, begin, source, wide_place.view.col_range(0, 2)),
               std::invalid_argument);

  const TensorArray x(type, 3, 8, stream), rows(type, 6, 8, stream), narrow(type, 6, 7, stream),
      half(DType::f16, 6, 8, stream), half_x(DType::f16, 3, 8, stream);
  const Array<float> weight(3, 2, stream), tall_weight(4, 2, stream), column(3, 1, stream);
  EXPECT_NO_THROW(gather_rows(x, source, 2, {}, rows, stream));
  EXPECT_THROW(gather_rows(x, source, 0, {}, rows, stream), std::invalid_argument);
  EXPECT_THROW(gather_rows(x, short_source, 2, {}, rows, stream), std::invalid_argument);
  EXPECT_THROW(gather_rows(x, source, 2, tall_weight, rows, stream), std::invalid_argument);
  EXPECT_THROW(gather_rows(x, source, 2, column, rows, stream), std::invalid_argument);
  EXPECT_THROW(gather_rows(x, source, 2, {}, narrow, stream), std::invalid_argument);
  EXPECT_THROW(gather_rows(x, source, 2, {}, half, stream), std::invalid_argument);
  EXPECT_THROW(gather_rows(half_x, source, 2, {}, rows, stream), std::invalid_argument);

  EXPECT_NO_THROW(combine_rows(rows, place, weight, x, column, x, stream));
  EXPECT_THROW(combine_rows(narrow, place, {}, {}, {}, x, stream), std::invalid_argument);
  EXPECT_THROW(combine_rows(rows, wide_place, {}, {}, {}, x, stream), std::invalid_argument);
  EXPECT_THROW(combine_rows(rows, place, tall_weight, {}, {}, x, stream), std::invalid_argument);
  EXPECT_THROW(combine_rows(rows, place, {}, rows, {}, x, stream), std::invalid_argument);
  EXPECT_THROW(combine_rows(rows, place, {}, {}, column, x, stream), std::invalid_argument);
  EXPECT_THROW(combine_rows(rows, place, {}, x, weight, x, stream), std::invalid_argument);
  EXPECT_THROW(combine_rows(half, place, {}, {}, {}, x, stream), std::invalid_argument);
  EXPECT_THROW(combine_rows(rows, place, {}, half_x, {}, x, stream), std::invalid_argument);
  EXPECT_THROW(combine_rows(rows, place, {}, {}, {}, half_x, stream), std::invalid_argument);

  const TensorArray w(type, 1, 8, stream), short_w(type, 1, 7, stream);
  EXPECT_NO_THROW(row_gate(x, w, column, stream));
  EXPECT_THROW(row_gate(x, short_w, column, stream), std::invalid_argument);
  EXPECT_THROW(row_gate(x, x, column, stream), std::invalid_argument);
  EXPECT_THROW(row_gate(x, w, weight, stream), std::invalid_argument);
  EXPECT_THROW(row_gate(half_x, w, column, stream), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Backends, ExpertRowsTest, testing::ValuesIn(backends()), backend_name);

}  // namespace

}  // namespace qpipe
