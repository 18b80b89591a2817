// What a layer found, on its way through JSON to other ranks and to later runs.
#include "pipeline/output/report.h"

#include <gtest/gtest.h>

#include <cmath>

namespace qpipe {
namespace {

LayerFindings through_json(const LayerFindings& findings) {
  return nlohmann::json::parse(nlohmann::json(findings).dump()).get<LayerFindings>();
}

LayerFindings findings() {
  LayerFindings f;
  f.modules = {{"a", 4, 128, 0.25, 0.05, false, false}, {"b", 8, -1, 0.5, 0.95, true, false}};
  f.scales = {{"norm", {"a", "b"}, 0.35, 1.5}};
  f.zero_of_zero = true;
  f.largest_activation = 70000.0;
  return f;
}

TEST(Findings, SurviveJson) {
  const LayerFindings f = through_json(findings());
  ASSERT_EQ(f.modules.size(), 2u);
  EXPECT_EQ(f.modules[1].name, "b");
  EXPECT_EQ(f.modules[1].group_size, -1);
  EXPECT_EQ(f.modules[0].mean_squared_error, 0.25);
  EXPECT_TRUE(f.modules[1].fell_back);
  EXPECT_EQ(f.scales.at(0).loss, 1.5);
  EXPECT_TRUE(f.zero_of_zero);
  EXPECT_EQ(f.largest_activation, 70000.0);
}

TEST(Findings, WithoutANumberSurviveJson) {
  LayerFindings f = findings();
  f.modules[0].mean_squared_error = f.scales[0].loss = f.largest_activation = NAN;
  f.modules[1].mean_squared_error = INFINITY;
  f = through_json(f);
  EXPECT_FALSE(std::isfinite(f.modules[0].mean_squared_error));
  EXPECT_FALSE(std::isfinite(f.modules[1].mean_squared_error));
  EXPECT_FALSE(std::isfinite(f.scales[0].loss));
  EXPECT_FALSE(std::isfinite(f.largest_activation));
  EXPECT_EQ(f.modules[0].damp, 0.05);
}

TEST(Report, SaysWhatWasRoundedToNearest) {
  RunReport report;
  take_up(findings(), report);
  const nlohmann::json json = report_json(report);
  EXPECT_EQ(json.at("fell_back_to_rtn"), 1);
  EXPECT_EQ(json.at("modules")[0].at("damp_percent"), 0.05);
  EXPECT_FALSE(json.at("modules")[0].contains("fell_back_to_rtn"));
  EXPECT_TRUE(json.at("modules")[1].at("fell_back_to_rtn"));
  EXPECT_FALSE(json.at("modules")[1].contains("damp_percent"));  // none was enough
  EXPECT_EQ(json.at("largest_activations"), nlohmann::json::array({70000.0}));
}

}  // namespace
}  // namespace qpipe
