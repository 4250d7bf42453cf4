// Philox on a register of 64-bit lanes, a 32-bit word in the low half of each.
//
// For 32-bit lanes GCC 12 builds the high half of a product from two half-width multiplications and
// about ten shuffles. Here the multiplication leaves both halves in place: high is a shift, low is
// the lane itself, whose upper half the next multiplication ignores. Measured on AVX2 (Zen 3), in
// the corrupt kernel: 2.3 ns an element before, 0.9 after.
#pragma once

#include "../core/philox.h"

#if DVAE_VECTOR_BYTES == 64
#define DVAE_MULTIPLY_LANES(a, b) _mm512_mul_epu32((__m512i)(a), (__m512i)(b))
#else
#define DVAE_MULTIPLY_LANES(a, b) _mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#endif

DVAE_BEGIN_CORE

struct Lanes64 {
  static constexpr int kCount = DVAE_VECTOR_BYTES / 8;
  typedef uint64_t Vector __attribute__((vector_size(DVAE_VECTOR_BYTES)));
  Vector v;

  DVAE_HD friend Lanes64 operator^(Lanes64 a, Lanes64 b) { return {a.v ^ b.v}; }
};

DVAE_HD void set_word(Lanes64& to, uint32_t value) {
  to.v = Lanes64::Vector{} + static_cast<uint64_t>(value);
}
DVAE_HD Lanes64 multiply_wide(Lanes64 a, uint32_t b) {
  Lanes64 factor;
  set_word(factor, b);
  return {(Lanes64::Vector)DVAE_MULTIPLY_LANES(a.v, factor.v)};
}
DVAE_HD Lanes64 high_word(Lanes64 p) { return {p.v >> 32}; }
DVAE_HD Lanes64 low_word(Lanes64 p) { return p; }

// Words of counters first, first + 1, ..., first + 2 kCount − 1: `even` holds every other one.
DVAE_HD void store_words(Lanes64 even, Lanes64 odd, uint32_t* to) {
  const Lanes64::Vector packed = (even.v & 0xFFFFFFFFull) | (odd.v << 32);
  __builtin_memcpy(to, &packed, sizeof(packed));
}

// The words of kLanes counters from `first` on: word w of counter i goes to to[kLanes · w + i].
template <int kLanes>
DVAE_HD void philox_lanes(uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3, Key key,
                          uint32_t* to) {
  constexpr int kPair = 2 * Lanes64::kCount;
  static_assert(kLanes % kPair == 0, "whole registers");
  for (int i = 0; i < kLanes; i += kPair) {
    Lanes64 even[4], odd[4];
    for (int lane = 0; lane < Lanes64::kCount; ++lane) {
      even[0].v[lane] = first + static_cast<uint32_t>(i + 2 * lane);
      odd[0].v[lane] = first + static_cast<uint32_t>(i + 2 * lane + 1);
    }
    set_word(even[1], c1), set_word(even[2], c2), set_word(even[3], c3);
    set_word(odd[1], c1), set_word(odd[2], c2), set_word(odd[3], c3);
    philox4x32(even[0], even[1], even[2], even[3], key);
    philox4x32(odd[0], odd[1], odd[2], odd[3], key);
    for (int w = 0; w < 4; ++w) store_words(even[w], odd[w], to + kLanes * w + i);
  }
}

DVAE_END_CORE

#undef DVAE_MULTIPLY_LANES
