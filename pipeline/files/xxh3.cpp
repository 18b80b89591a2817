#include "pipeline/files/xxh3.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <new>

namespace qpipe {

struct Xxh3::State {
  struct Free {
    void operator()(XXH3_state_t* owned) const { XXH3_freeState(owned); }
  };
  std::unique_ptr<XXH3_state_t, Free> state{XXH3_createState()};
};

Xxh3::Xxh3() : state_(std::make_unique<State>()) {
  if (!state_->state || XXH3_128bits_reset(state_->state.get()) != XXH_OK) throw std::bad_alloc();
}
Xxh3::~Xxh3() = default;
Xxh3::Xxh3(Xxh3&&) noexcept = default;
Xxh3& Xxh3::operator=(Xxh3&&) noexcept = default;

void Xxh3::add(const void* data, std::size_t bytes) {
  if (bytes != 0) XXH3_128bits_update(state_->state.get(), data, bytes);
}

std::string Xxh3::hexadecimal() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->state.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace qpipe
