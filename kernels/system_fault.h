// Faults of the machine, of its devices and network, or of another rank: what a user can do is to
// look at those and to run again. Other exceptions that are no UserError are defects of qpipe.
#pragma once

#include <stdexcept>

namespace qpipe {

class SystemFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace qpipe
