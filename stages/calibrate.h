// The Hessians of a step's groups: H = (1/T) Σ x xᵀ over the tokens of all ranks, or over some of
// them, of the rows and columns that the group reads; bit-identical for any number of ranks.
#pragma once

#include <string>
#include <vector>

#include "launch/comm.h"
#include "stages/activations.h"
#include "stages/cross_moments.h"

namespace qpipe {

// A run of columns of H in host memory: [d − begin, cols] float32, row r column c is H(begin + r,
// begin + c), defined for r ≥ c.
struct HessianPanel {
  std::int64_t begin = 0;
  std::int64_t cols = 0;
  HostBuffer memory;
};

struct Hessian {
  Array<float> matrix;               // [d, d]; empty while H waits on the host
  std::vector<HessianPanel> panels;  // there: all columns in order
  std::vector<float> diagonal;       // host
  float largest_input = 0.0f;        // |x| of all tokens
  std::int64_t tokens = 0;           // T; 0: no token came to this expert, and H is 0
  std::int64_t routed = 0;           // of them, those that came by themselves
  CrossMoments
      cross;  // with the original model's input; empty: codes aim at the layer's own output
};

// All columns of the current step's input, which has one panel, as a group.
Group whole_input(const Activations& activations);

// The 64-bit sum is held in panels of so many columns, each from its diagonal down, so that a
// reduction moves little more than the triangle.
constexpr std::int64_t hessian_sum_panel = 2048;
// Elements of the sum of columns [0, columns) of a [d, d] Hessian; later ranges of as many columns
// have fewer.
std::int64_t hessian_sum_elements(std::int64_t d, std::int64_t columns);

// A group and what messages call it ("layer 3, input of self_attn.o_proj").
struct CalibratedGroup {
  const Group& group;
  std::string what;
  int owner =
      -1;  // the rank that gets H, where the others get its numbers of tokens alone; −1: all
};

// One pass over the inputs for all of the groups, whose sums are held at once. tokens: H is of the
// evenly spaced blocks that hold about so many (is_sampled), 0: of all. places: of the Hessians and
// their sums. expert_tokens: an expert to which fewer come gets others on top (stages/starved.h);
// 0: none does. Collective. Throws std::domain_error naming the step, the column and the first
// sample when an activation of any token is NaN or infinite (every rank throws the same).
std::vector<Hessian> calibrate(const Activations& activations,
                               const std::vector<CalibratedGroup>& groups, std::int64_t tokens,
                               std::int64_t expert_tokens, const Places& places, Comm& comm,
                               Stream& stream);
// Of one group.
Hessian calibrate(const Activations& activations, const Group& group, const std::string& what,
                  std::int64_t tokens, const Places& places, Comm& comm, Stream& stream);

// h_ij = H[perm[i], perm[j]] for a Hessian that waits on the host.   perm [1, d] on the device, or
// empty: as it is; h [d, d].
void place_hessian(const Hessian& hessian, Matrix<const std::int32_t> perm, Matrix<float> h,
                   Stream& stream);
// Makes hessian.matrix, if it is not there.
void bring_to_device(Hessian& hessian, Stream& stream);
// Frees hessian.matrix where the host has it.
void leave_device(Hessian& hessian);

// mean_t |x[t, i]| over the group's rows of all ranks, [d] on every rank, bit-identical for any
// number of ranks; 0 where there is none. Collective; throws as calibrate().
std::vector<double> mean_magnitude(const Activations& activations, const Group& group,
                                   const std::string& what, Comm& comm, Stream& stream);

}  // namespace qpipe
