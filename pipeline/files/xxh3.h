// XXH3-128, the hash that names cached files and inputs. Not a cryptographic hash.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace qpipe {

class Xxh3 {
 public:
  Xxh3();
  ~Xxh3();
  Xxh3(Xxh3&&) noexcept;
  Xxh3& operator=(Xxh3&&) noexcept;

  void add(const void* data, std::size_t bytes);
  // 32 hexadecimal digits of everything added so far, in XXH's canonical (big-endian) order.
  std::string hexadecimal() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Of these bytes alone: a std::string's or a std::vector<unsigned char>'s.
template <class Bytes>
std::string xxh3_of(const Bytes& bytes) {
  static_assert(sizeof(*bytes.data()) == 1);
  Xxh3 hash;
  hash.add(bytes.data(), bytes.size());
  return hash.hexadecimal();
}

}  // namespace qpipe
