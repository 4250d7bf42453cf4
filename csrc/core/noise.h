// The one mapping from (seed, stream, example, sample, element) to a random number.
//
//   key      low and high word of the 64-bit seed
//   counter  c0 = 16 · (element / 64) + element % 16
//            c1 = sample      (corruption: the index of the copy)
//            c2 = example
//            c3 = stream | copy << 8   (latent samples of corruption `copy`; else copy = 0)
//   word     (element % 64) / 16 of the counter's four
//
// So 64 consecutive elements are 16 counters of 4 words, and word w of the 16 counters is 16
// consecutive elements: one AVX-512 register, or half a warp's coalesced store. Normals take the
// words in pairs (0, 1) and (2, 3): elements e and e + 16 are the two results of one Box–Muller.
//
// Examples, samples and counters must fit in 32 bits, copies in 24. Pinned by known-answer tests.
#pragma once

#include "math.h"
#include "philox.h"

DVAE_BEGIN_CORE

constexpr int kBlock = 64;  // elements of one noise block
constexpr int kLanes = 16;  // counters of one noise block

// 2 is taken too, by dvae_fast/noise.py: which component of a mixture.
enum Stream : uint32_t { kStreamCorruption = 0, kStreamLatent = 1 };

// Counter word c3.
DVAE_HD uint32_t stream_word(Stream stream, uint32_t copy) { return stream | copy << 8; }

// The words of elements lane, lane + 16, lane + 32 and lane + 48 of a block, lane < 16; `stream`
// is a stream_word().
DVAE_HD void noise_lane(int64_t block, int lane, uint32_t sample, uint32_t example, uint32_t stream,
                        Key key, uint32_t& w0, uint32_t& w1, uint32_t& w2, uint32_t& w3) {
  w0 = static_cast<uint32_t>(block) * kLanes + static_cast<uint32_t>(lane);
  w1 = sample;
  w2 = example;
  w3 = stream;
  philox4x32(w0, w1, w2, w3, key);
}

// A uniform of 24 bits, compared with threshold() below. Signed, for SSE2's comparisons.
DVAE_HD int32_t uniform24(uint32_t word) { return static_cast<int32_t>(word >> 8); }

// round-half-even(p · 2²⁴): P(uniform24 < threshold) = p to 2⁻²⁵; exact at 0 and 1.
DVAE_HD int32_t threshold(float p) {
  constexpr double kRound = 6755399441055744.0;  // 1.5·2⁵²
  return static_cast<int32_t>((static_cast<double>(p) * 16777216.0 + kRound) - kRound);
}

// Box–Muller: (√(−2 log u) cos θ, √(−2 log u) sin θ), u = (w0 + ½)/2³², θ = 2π w1/2³².
DVAE_HD void normal_pair(uint32_t w0, uint32_t w1, float& n0, float& n1) {
#if defined(__CUDA_ARCH__)
  box_muller<SpecialFunctions>(w0, w1, n0, n1);
#else
  const float radius = sqrt(-2.0f * log_uniform(w0));
  float s, c;
  sincos_turn(w1, s, c);
  n0 = radius * c;
  n1 = radius * s;
#endif
}
DVAE_HD void normal_pair(uint32_t w0, uint32_t w1, double& n0, double& n1) {
  const double radius = ::sqrt(-2.0 * ::log((static_cast<double>(w0) + 0.5) * 0x1p-32));
  double s, c;
  sincos_turn(w1, s, c);
  n0 = radius * c;
  n1 = radius * s;
}

DVAE_END_CORE
