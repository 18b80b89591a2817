// One period of a bitstream of `bits`-wide fields: the fewest fields that fill whole 32-bit words.
// Shared by pack.cpp and pack.cu.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define QPIPE_HOST_DEVICE __host__ __device__
#else
#define QPIPE_HOST_DEVICE
#endif

namespace qpipe {

template <int bits>
struct Period {
  static constexpr int words = bits == 3 ? 3 : 1;
  static constexpr int fields = 32 * words / bits;

  // words[i] ← the fields read(k), k in [0, fields), each already below 2^bits.
  template <class Read>
  QPIPE_HOST_DEVICE static void join(Read read, std::uint32_t (&word)[words]) {
    for (int i = 0; i < words; ++i) word[i] = 0;
    for (int k = 0; k < fields; ++k) {
      const std::uint32_t field = read(k);
      const int bit = k * bits;
      word[bit / 32] |= field << (bit % 32);
      if (bit % 32 + bits > 32) word[bit / 32 + 1] |= field >> (32 - bit % 32);
    }
  }

  // write(k, field) for each field.
  template <class Write>
  QPIPE_HOST_DEVICE static void split(const std::uint32_t (&word)[words], Write write) {
    for (int k = 0; k < fields; ++k) {
      const int bit = k * bits;
      std::uint32_t field = word[bit / 32] >> (bit % 32);
      if (bit % 32 + bits > 32) field |= word[bit / 32 + 1] << (32 - bit % 32);
      write(k, field & ((1u << bits) - 1u));
    }
  }
};

}  // namespace qpipe
