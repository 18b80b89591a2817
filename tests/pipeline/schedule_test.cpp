#include "pipeline/schedule.h"

#include <gtest/gtest.h>

#include <string>

namespace qpipe {
namespace {

// "123": layers to do; "_": finished by an earlier run.
Schedule schedule(const Teams& teams, int team, const std::string& layers) {
  Schedule s{teams, team, true, true, {}};
  for (const char layer : layers) s.finished.push_back(layer == '_');
  return s;
}

// What the team does in each round: "." nothing, "p" passes on, "q" quantizes; upper case where the
// output is needed.
std::string parts(const Schedule& s) {
  std::string text;
  for (const Round& round : s.rounds()) {
    const Task task = s.task(round);
    const bool needed = task.output_needed;
    text += task.duty == Duty::none      ? '.'
            : task.duty == Duty::pass_on ? (needed ? 'P' : 'p')
                                         : (needed ? 'Q' : 'q');
  }
  return text;
}

TEST(Schedule, OneTeamDoesAllLayersInTurn) {
  const Schedule s = schedule({1, 4}, 0, "012");
  EXPECT_EQ(s.travel(), Travel::stay);
  EXPECT_EQ(s.end(), 3);
  EXPECT_EQ(parts(s), "QQq");
}

TEST(Schedule, FinishedLayersPassOnWhatIsNeeded) {
  EXPECT_EQ(parts(schedule({1, 1}, 0, "_1_3__")), "PQPq..");
  EXPECT_EQ(schedule({1, 1}, 0, "_1_3__").end(), 4);
  EXPECT_EQ(parts(schedule({1, 1}, 0, "___")), "...");
  EXPECT_EQ(schedule({1, 1}, 0, "___").end(), 0);
}

TEST(Schedule, WithoutCalibrationNothingIsPassedOn) {
  Schedule s = schedule({2, 1}, 1, "_123_");
  s.calibrates = false;
  EXPECT_EQ(s.travel(), Travel::stay);
  EXPECT_EQ(s.rounds().size(), 3u);
  EXPECT_EQ(parts(s), "qq.");  // layers 1 and 3; the last round has one layer, of team 0
}

TEST(Schedule, QuantizedOutputsWalkFromTeamToTeam) {
  const Schedule s = schedule({2, 1}, 1, "01234");
  EXPECT_EQ(s.travel(), Travel::hand_over);
  EXPECT_EQ(parts(s), ".Q.Q.");
}

TEST(Schedule, OriginalOutputsStreamThroughARoundOfTeams) {
  Schedule s = schedule({2, 2}, 0, "0_234");
  s.quantized_propagation = false;
  EXPECT_EQ(s.travel(), Travel::stream);
  ASSERT_EQ(s.rounds().size(), 3u);
  EXPECT_EQ(s.rounds()[2].first, 4);
  EXPECT_EQ(s.rounds()[2].count, 1);
  EXPECT_EQ(parts(s), "QQq");
  s.team = 1;
  EXPECT_EQ(parts(s), "PQ.");
}

}  // namespace
}  // namespace qpipe
