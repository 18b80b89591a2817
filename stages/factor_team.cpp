#include "stages/factor_team.h"

namespace qpipe {

FactorTeam factor_team(Comm& comm, Stream& stream) {
  comm.connect_ahead(stream);  // not by a broadcast on a stream that ends before the communicator
  return {comm.rank(), comm.size(),
          [&comm](void* data, std::size_t bytes, int from, Stream& beside) {
            comm.broadcast(data, bytes, from, beside);
          },
          [&comm](Stream& beside) { comm.wait(beside); }};
}

}  // namespace qpipe
