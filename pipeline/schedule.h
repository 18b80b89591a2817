// Which team works on which layer when: a pure function of the teams, the method and what is
// finished already.
#pragma once

#include <cstdint>
#include <vector>

#include "launch/teams.h"

namespace qpipe {

// How hidden states get from a layer to the next.
enum class Travel {
  stay,       // one team has all layers, or the method needs none
  stream,     // original propagation: block by block through the teams of a round
  hand_over,  // quantized propagation: to the next team, once the layer is quantized
};

// Layers that are worked on at the same time, one on each team.
struct Round {
  std::int64_t first = 0;
  std::int64_t count = 1;
};

// What a team does with its layer of a round.
enum class Duty {
  none,     // it has none, or one that is finished and whose output nobody reads
  pass_on,  // finished by an earlier run: its output only
  quantize,
};

struct Task {
  Duty duty = Duty::none;
  std::int64_t layer = 0;
  bool output_needed = false;  // by a layer after it
};

struct Schedule {
  Teams teams;
  int team = 0;  // this rank's
  bool calibrates = true;
  bool quantized_propagation = true;
  std::vector<bool> finished;  // by an earlier run, for each layer

  Travel travel() const;
  std::int64_t layers() const { return static_cast<std::int64_t>(finished.size()); }
  bool is_finished(std::int64_t layer) const { return finished[static_cast<std::size_t>(layer)]; }
  // One past the last unfinished layer: nobody reads the output of layer end − 1.
  std::int64_t end() const;
  bool works_on(std::int64_t layer) const { return teams.team_of_layer(layer) == team; }
  std::vector<Round> rounds() const;
  Task task(const Round& round) const;  // of this rank's team
};

}  // namespace qpipe
