// Where a run keeps what does not fit on the GPU. Every choice gives the same bytes.
#pragma once

#include <cstdint>
#include <string>

namespace qpipe {

// host: page-locked memory; disk: a file in the run folder.
enum class Place { device, host, disk };

struct Places {
  Place hidden = Place::device;  // the residual stream of all own samples
  Place input = Place::device;   // the current step's input of all own samples
  bool inputs_kept =
      false;  // the inputs of all steps of a layer, on the device, from its pass in a ring of teams
  bool weights_by_step =
      false;  // a layer's weights wait in host memory; only those in use are on the device
  std::int64_t experts_at_once = 0;  // of those weights, as many experts' that a forward pass runs;
                                     // 0: all of a step
  std::int64_t groups_at_once = 0;   // of a step, whose Hessians are summed in one pass over its
                                     // input; 0: all
  std::int64_t hessian_panel_columns = 0;  // columns of a 64-bit Hessian sum that are held at once,
                                           // a multiple of the kernel's; 0: all
  bool hessian_on_host = false;            // finished Hessians wait in host memory
  int solvers = 1;          // of experts' groups, at the same time (stages/solvers.h)
  int cast_workers = 0;     // of casts, at most, at the same time; 0: no limit
  std::string folder = {};  // of the files of Place::disk; exists
};

// Those of a forward pass of whole layers: no input is ever written, and what lies on the host
// takes memory when it is written first.
inline Places without_inputs(const Places& places) {
  Places result;
  result.hidden = places.hidden;
  result.input = Place::host;
  result.folder = places.folder;
  return result;
}

}  // namespace qpipe
