// exp, log, log1p, softplus, sigmoid and sincos that a compiler can vectorise.
//
// The float versions are branch-free polynomials (coefficients of Moshier's Cephes library).
// Errors, checked in tests/cpp: exp, log, log1p, log1p_unit and softplus 2 ulp, one_minus_exp,
// sigmoid and sincos 3, log_uniform 3.5, tanh 4. The double versions are libm's: float64 is for
// oracles, not for speed. In device code exp_nonpositive and reciprocal take the special-function
// unit (device_math.h), which adds some 3 ulp.
#pragma once

#include <cmath>

#include "device_math.h"
#include "macros.h"

DVAE_BEGIN_CORE

namespace detail {

// Adding 1.5·2²³ rounds a float of magnitude below 2²² to an integer, left in the low mantissa.
constexpr float kRound = 12582912.0f;
constexpr uint32_t kRoundBits = 0x4B400000u;

// e^r for |r| <= ln 2 / 2.
DVAE_HD float exp_reduced(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

// x = n ln 2 + r; returns r and n. ln 2 in two parts, so that n · kLn2Hi is exact.
DVAE_HD float reduce_exp(float x, int32_t& n) {
  const float t = x * 1.44269504088896341f + kRound;
  const float f = t - kRound;
  n = static_cast<int32_t>(bit_cast<uint32_t>(t) - kRoundBits);
  return (x - f * 0.693359375f) - f * -2.12194440e-4f;
}

// 2^n, −127 < n < 128. In unsigned integers, for n means nothing where x was NaN or −inf.
DVAE_HD float power_of_two(int32_t n) {
  return bit_cast<float>((static_cast<uint32_t>(n) + 127u) << 23);
}

// (log(1 + x) − x + ½ x²)/x³, 1 + x in [√½, √2).
DVAE_HD float log_cubic(float x) {
  float p = 7.0376836292e-2f;
  p = p * x - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  return p * x + 3.3333331174e-1f;
}

// log(m) + e ln 2 from x = m − 1, m in [√½, √2).
DVAE_HD float log_reduced(float x, float e) {
  const float z = x * x;
  float y = x * z * log_cubic(x);
  y = y + e * -2.12194440e-4f;
  y = y - 0.5f * z;
  return (x + y) + e * 0.693359375f;
}

// Exponent e and mantissa m in [√½, √2) of a positive normal float.
DVAE_HD float split_mantissa(float x, float& e) {
  const int32_t bits = static_cast<int32_t>(bit_cast<uint32_t>(x) - 0x3F3504F3u);  // √½
  e = static_cast<float>(bits >> 23);
  return bit_cast<float>((bits & 0x007FFFFF) + 0x3F3504F3);
}

}  // namespace detail

// e^x for x <= 0 or NaN; results below the smallest normal float are 0.
DVAE_HD float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return exp_minus_magnitude<SpecialFunctions, false>(x);
#else
  int32_t n;
  const float r = detail::reduce_exp(x, n);
  const float y = detail::exp_reduced(r) * detail::power_of_two(n);
  return x < -87.33654f ? 0.0f : y;
#endif
}
DVAE_HD double exp_nonpositive(double x) { return ::exp(x); }

DVAE_HD float exp(float x) {
  // Past these bounds the result is inf or 0 anyway; NaN passes both comparisons.
  float c = x > 89.0f ? 89.0f : x;
  c = c < -104.0f ? -104.0f : c;
  int32_t n;
  const float r = detail::reduce_exp(c, n);
  // 2^n in two factors, each a normal float: reaches denormals and overflows to inf.
  const int32_t h = n >> 1;
  return detail::exp_reduced(r) * detail::power_of_two(h) * detail::power_of_two(n - h);
}
DVAE_HD double exp(double x) { return ::exp(x); }

DVAE_HD float log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float scaled = tiny ? x * 33554432.0f : x;  // 2²⁵
  float e;
  const float m = detail::split_mantissa(scaled, e);
  const float y = detail::log_reduced(m - 1.0f, tiny ? e - 25.0f : e);
  // One choice after another, no && of two: GCC 12 leaves some loops with those scalar.
  const float above = x < infinity<float>() ? y : x;
  const float below = x == 0.0f ? -infinity<float>() : quiet_nan<float>();
  return x > 0.0f ? above : below;
}
DVAE_HD double log(double x) { return ::log(x); }

// log(1 + x), x >= −1: log(u) with the rounding of u = 1 + x put back, (x − (u − 1))/u.
DVAE_HD float log1p(float x) {
  const float u = 1.0f + x;  // 0, or at least 2⁻²⁴: none of log's scaling
  float e;
  const float m = detail::split_mantissa(u, e);
  const float y = detail::log_reduced(m - 1.0f, e) + (x - (u - 1.0f)) / u;
  const float above = u < infinity<float>() ? y : u;
  const float below = u == 0.0f ? -infinity<float>() : quiet_nan<float>();
  return u > 0.0f ? above : below;
}
DVAE_HD double log1p(double x) { return ::log1p(x); }

DVAE_HD float abs(float x) {
#if defined(__CUDA_ARCH__)
  return ::fabsf(x);  // part of most instructions that take the result
#else
  return bit_cast<float>(bit_cast<uint32_t>(x) & 0x7FFFFFFFu);
#endif
}
DVAE_HD double abs(double x) { return ::fabs(x); }

// 1 or 0, made of bits: of a choice between them, and of others that depend on it, GCC 12 makes
// branches, and leaves the loop scalar.
template <class A>
DVAE_HD A one_if(bool condition) {
  if constexpr (sizeof(A) == 8) return condition ? 1.0 : 0.0;
  return bit_cast<float>(static_cast<uint32_t>(condition) * 0x3F800000u);
}
// The value where the condition holds, 0 elsewhere whatever the value: as one_if.
DVAE_HD float only_if(bool condition, float value) {
  return bit_cast<float>(bit_cast<uint32_t>(value) & (0u - static_cast<uint32_t>(condition)));
}
DVAE_HD double only_if(bool condition, double value) { return condition ? value : 0.0; }
// NaN where the condition holds, and 0 elsewhere, to be added: as one_if, made without a choice.
template <class A>
DVAE_HD A nan_if(bool condition) {
  if constexpr (sizeof(A) == 8) return bit_cast<double>(uint64_t{condition} * 0x7FF8000000000000u);
  return bit_cast<float>(static_cast<uint32_t>(condition) * 0x7FC00000u);
}
// x >= 0, but for inf the largest number, the one before it, and without a choice.
DVAE_HD float finite(float x) {
  return bit_cast<float>(bit_cast<uint32_t>(x) - static_cast<uint32_t>(x == infinity<float>()));
}
DVAE_HD double finite(double x) {
  return bit_cast<double>(bit_cast<uint64_t>(x) - static_cast<uint64_t>(x == infinity<double>()));
}

// A parameter that may not be negative: NaN where it is, as its logarithm would be.
template <class A>
DVAE_HD A not_negative(A x) {
  return x < A(0) ? quiet_nan<A>() : x;
}

// log(1 + y), but where |y| < limit, at most ¼, without its first term: log(1 + y) − y, whose
// digits a difference would lose. `ratio` is 1 + y, whose digits y has lost where it is near −1.
template <class A>
struct LogRest {
  A value;
  A whole;  // 0 without its first term, else 1
};
// A ratio of 0 is taken for the smallest normal number, one of inf for the largest.
DVAE_HD LogRest<float> log_rest(float ratio, float y, float limit) {
  const bool near = abs(y) < limit;
  float e;
  const float m = detail::split_mantissa(finite(ratio + 1.17549435e-38f), e);
  const float x = near ? y : m - 1.0f;
  const float rest = x * x * (x * detail::log_cubic(x) - 0.5f);
  const float far = (x + (rest + e * -2.12194440e-4f)) + e * 0.693359375f;
  return {near ? rest : far, 1.0f - one_if<float>(near)};
}
DVAE_HD LogRest<double> log_rest(double ratio, double y, double limit) {
  const bool near = ::fabs(y) < limit;
  const double far = ::log(finite(ratio + 0x1p-1022));
  return {near ? ::log1p(y) - y : far, 1.0 - one_if<double>(near)};
}

DVAE_HD float sqrt(float x) { return ::sqrtf(x); }
DVAE_HD double sqrt(double x) { return ::sqrt(x); }

// 1 − e^−y, y >= 0; σ(x) where y = softplus(x). For small y by the series, where the difference
// cancels: six terms leave y⁶/5040 of it, 5e-8 at ¼.
DVAE_HD float one_minus_exp(float y) {
  float p = 1.0f - y * (1.0f / 6.0f);
  p = 1.0f - y * (1.0f / 5.0f) * p;
  p = 1.0f - y * (1.0f / 4.0f) * p;
  p = 1.0f - y * (1.0f / 3.0f) * p;
  p = 1.0f - y * (1.0f / 2.0f) * p;
  const float direct = 1.0f - exp_nonpositive(-y);
  return y < 0.25f ? y * p : direct;
}
DVAE_HD double one_minus_exp(double y) { return -::expm1(-y); }

// (1 − e^−2|x|)/(1 + e^−2|x|) with the sign of x
template <class A>
DVAE_HD A tanh(A x) {
  const A m = one_minus_exp(A(2) * abs(x));
  const A y = m / (A(2) - m);
  return x < A(0) ? -y : y;
}

template <class A>
DVAE_HD A expm1(A x) {
  const A m = one_minus_exp(abs(x));
  return x < A(0) ? -m : m * exp(x);
}

// 1/y for y in [1, 3] or NaN; an IEEE division costs device code a call.
DVAE_HD float reciprocal(float y) {
#if defined(__CUDA_ARCH__)
  return SpecialFunctions::reciprocal(y);
#else
  return 1.0f / y;
#endif
}
DVAE_HD double reciprocal(double y) { return 1.0 / y; }

// log(1 + e) for e in [0, 1] or NaN, without a choice to make. With s = e/(2 + e) it is
// 2 atanh(s) = 2 s + s r, r = 2 (atanh(s)/s − 1); and 2 s = e − s e, whose e is exact: e − s (e −
// r). The polynomial is r/s² in s² <= 1/9, to 2e-8 of the whole.
DVAE_HD float log1p_unit(float e) {
#if defined(__CUDA_ARCH__)
  const float s = e * reciprocal(2.0f + e);
#else
  const float s = e / (2.0f + e);
#endif
  const float t = s * s;
  float p = 0.268675476f;
  p = p * t + 0.282339572f;
  p = p * t + 0.400076718f;
  p = p * t + 0.666666388f;
  return e - s * (e - t * p);
}
DVAE_HD double log1p_unit(double e) { return ::log1p(e); }

// log(1 + e^x) = max(x, 0) + log1p(e^−|x|)
template <class A>
DVAE_HD A softplus(A x) {
  return (x > A(0) ? x : A(0)) + log1p_unit(exp_nonpositive(-abs(x)));
}

// σ(x) from e = e^−|x|: 1/(1 + e) for x >= 0, e/(1 + e) below.
template <class A>
DVAE_HD A sigmoid_from(A x, A e) {
  const A r = reciprocal(A(1) + e);
  return x >= A(0) ? r : e * r;
}
template <class A>
DVAE_HD A sigmoid(A x) {
  return sigmoid_from(x, exp_nonpositive(-abs(x)));
}

// sin and cos of the angle v · 2π/2³². The top bits of v are the quadrant, exactly.
DVAE_HD void sincos_turn(uint32_t v, float& s, float& c) {
  const uint32_t quadrant = (v + 0x20000000u) >> 30;
  const int32_t rest = static_cast<int32_t>(v - (quadrant << 30));
  const float x = static_cast<float>(rest) * 1.46291807926715968e-9f;  // 2π/2³²
  const float z = x * x;
  float ps = -1.9515295891e-4f;
  ps = ps * z + 8.3321608736e-3f;
  ps = ps * z - 1.6666654611e-1f;
  const float sine = ps * z * x + x;
  float pc = 2.443315711809948e-5f;
  pc = pc * z - 1.388731625493765e-3f;
  pc = pc * z + 4.166664568298827e-2f;
  const float cosine = pc * z * z - 0.5f * z + 1.0f;
  const bool swap = (quadrant & 1u) != 0u;
  const float s0 = swap ? cosine : sine;
  const float c0 = swap ? sine : cosine;
  s = (quadrant & 2u) != 0u ? -s0 : s0;
  c = ((quadrant + 1u) & 2u) != 0u ? -c0 : c0;
}
DVAE_HD void sincos_turn(uint32_t v, double& s, double& c) {
  const double x = static_cast<double>(static_cast<int32_t>(v)) * 1.46291807926715968e-9;
  s = ::sin(x);
  c = ::cos(x);
}

// log((w + ½) 2⁻³²), a uniform's logarithm. Near 1 the float (w + ½) 2⁻³² has lost its distance
// to 1, which is what the logarithm is made of: there x = u − 1 comes from the complement of w.
DVAE_HD float log_uniform(uint32_t w) {
  const uint32_t folded = w < ~w ? w : ~w;  // below 2³¹: a signed conversion serves
  const float f =
      (static_cast<float>(static_cast<int32_t>(folded)) + 0.5f) * 2.32830643653869629e-10f;
  const float u = static_cast<int32_t>(w) < 0 ? 1.0f - f : f;
  float e;
  const float m = detail::split_mantissa(u, e);
  return detail::log_reduced(e == 0.0f ? -f : m - 1.0f, e);
}

DVAE_END_CORE
