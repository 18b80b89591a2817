// What the two halves of qpipe_hdf5 share (main.cpp).
#pragma once

#include <hdf5.h>
#include <sys/resource.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace qpipe::hdf5 {

// One line for standard error.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Id {
 public:
  Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Id() {
    if (id_ >= 0) close_(id_);
  }
  Id(const Id&) = delete;
  Id& operator=(const Id&) = delete;
  explicit operator bool() const { return id_ >= 0; }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// A loop that does not end is ended by SIGXCPU; a slow disk takes no processor time.
void allow_more_seconds(rlim_t seconds);

// Token ids, i32 [samples, seqlen] on standard input, as a dataset of a file that is not there yet.
// Throws Fault.
void write_tokens(const std::string& path, const std::string& dataset, std::int64_t samples,
                  std::int64_t seqlen);

}  // namespace qpipe::hdf5
