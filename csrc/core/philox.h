// Philox4x32-10: four random words as a function of a counter and a key, nothing else.
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once

#include "macros.h"

DVAE_BEGIN_CORE

struct Key {
  uint32_t k0, k1;
};

// The key of a 64-bit seed: its low and high words.
DVAE_HD Key key_from_seed(int64_t seed) {
  const uint64_t s = static_cast<uint64_t>(seed);
  return {static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32)};
}

// What Philox needs of a word: the two halves of a product, and a constant of its type. Other
// word types (csrc/cpu/philox_lanes.h) have the same four functions.
DVAE_HD uint64_t multiply_wide(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  // To the plain product ptxas adds the constant's high half, 0, each time: a tenth of corrupt.
  uint64_t p;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a), "r"(b));
  return p;
#else
  return static_cast<uint64_t>(a) * b;
#endif
}
DVAE_HD uint32_t high_word(uint64_t p) { return static_cast<uint32_t>(p >> 32); }
DVAE_HD uint32_t low_word(uint64_t p) { return static_cast<uint32_t>(p); }
DVAE_HD void set_word(uint32_t& to, uint32_t value) { to = value; }

// Replaces the counter (c0, c1, c2, c3) by its random words.
template <class Word>
DVAE_HD void philox4x32(Word& c0, Word& c1, Word& c2, Word& c3, Key key) {
  constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  DVAE_UNROLL
  for (int round = 0; round < 10; ++round) {
    const auto p0 = multiply_wide(c0, kMul0);
    const auto p1 = multiply_wide(c2, kMul1);
    Word k0, k1;
    set_word(k0, key.k0);
    set_word(k1, key.k1);
    c0 = high_word(p1) ^ (c1 ^ k0);
    c1 = low_word(p1);
    c2 = high_word(p0) ^ (c3 ^ k1);
    c3 = low_word(p0);
    key.k0 += kWeyl0;
    key.k1 += kWeyl1;
  }
}

DVAE_END_CORE
