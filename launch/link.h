// One direction between two ranks: device buffers sent by one and received by the other, in order, while both compute.
// NCCL send/receive on a communicator and a CUDA stream of its own; MPI on the CPU.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <string>

#include "launch/comm.h"

namespace qpipe {

struct NcclLink;

class Link {
 public:
  // Called by ranks `from` and `to` of `comm`, from ≠ to, at the same time. `comm` and `stream` outlive the link. Links of one job are made
  // in an order that lets every pair meet (pipeline/ring.cpp).
  Link(Comm& comm, int from, int to, Stream& stream);
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Starts once the stream has done all that is queued on it now, and after the operations before. The memory belongs to the link until
  // wait_oldest() has returned for this operation. The receiver asks for as many bytes as the sender sends.
  void send(const void* data, std::size_t bytes, Stream& stream);  // on `from`
  void receive(void* data, std::size_t bytes, Stream& stream);     // on `to`
  std::int64_t bytes() const { return bytes_; }                    // of all operations so far
  std::size_t under_way() const { return operations_.size(); }
  // Whether the oldest operation under way is done; there is one.
  bool oldest_is_done();
  // Returns when the oldest operation under way is done, and forgets it. Bounded: throws std::runtime_error naming both ranks.
  void wait_oldest();

 private:
  struct Operation;
  struct Destroy {
    void operator()(NcclLink* link) const;
  };
  std::string describe(const Operation& operation) const;

  Comm& comm_;
  int from_ = 0;
  int to_ = 0;
  std::unique_ptr<NcclLink, Destroy> nccl_;
  std::list<Operation> operations_;
  std::int64_t bytes_ = 0;
};

}  // namespace qpipe
