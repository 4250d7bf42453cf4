// Formulas in fewer instructions than math.h's and likelihoods.h's, for what 16-bit matrices made:
// their rounding hides what these leave out.
#pragma once

#include "math.h"

DVAE_BEGIN_CORE

// e^−|x|: wrong by (1 + |x|) 2e-7 of it; where it is below 2⁻¹²⁶ it is that. NaN stays NaN.
DVAE_HD float coarse_exp_minus(float x) {
  float t = abs(x) * -1.44269504f;
  t = -126.0f > t ? -126.0f : t;
  const float r = t + detail::kRound;
  const float f = t - (r - detail::kRound);
  float p = 1.3276472e-3f;
  p = p * f + 9.6755420e-3f;
  p = p * f + 5.5507131e-2f;
  p = p * f + 2.4022120e-1f;
  p = p * f + 6.9314694e-1f;
  p = p * f + 1.0f;
  return bit_cast<float>(bit_cast<uint32_t>(p) + (bit_cast<uint32_t>(r) << 23));
}

// log(1 + e^x), wrong by 2e-5 of it: log(1 + e)/e is a polynomial. For a result that is rounded to
// bfloat16.
DVAE_HD float coarse_softplus(float x) {
  const float e = coarse_exp_minus(x);
  float q = -2.3869153e-2f;
  q = q * e + 1.0122230e-1f;
  q = q * e - 2.1004872e-1f;
  q = q * e + 3.2520670e-1f;
  q = q * e - 4.9936137e-1f;
  q = q * e + 9.9999160e-1f;
  return (0.0f > x ? 0.0f : x) + e * q;
}

// A Bernoulli's log p = d l − log(1 + e), e = e^−|l|, d = x − 1 if l > 0 else x: a = Σ d l and
// b = Π (1 + e), which loses an e below 2⁻²⁴.
struct CoarseBernoulli {
  static constexpr int kMaxPush =
      64;  // b stays below 2⁶⁴; more terms of one kind cost a float much

  // kInfinite: at l = ±inf a term with d = 0 is 0; without, it is NaN.
  template <bool kInfinite>
  DVAE_HD static void push(float& a, float& b, float logit, float x) {
    const float d = logit > 0.0f ? x - 1.0f : x;
    const float factor = kInfinite && d == 0.0f ? 0.0f : logit;
    a = a + d * factor;
    b = b + b * coarse_exp_minus(logit);
  }
  DVAE_HD static float finish(float a, float b) { return a - log(b); }
};

DVAE_END_CORE
