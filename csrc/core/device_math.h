// Formulas made for a chip with a special-function unit: fewer instructions than math.h's, the
// errors of the unit in them.
//
// `Chip` is that unit. SpecialFunctions is NVIDIA's, in device code alone; tests put in its place a
// model whose results are as far off as the CUDA C++ Programming Guide allows them to be.
#pragma once

#include <cmath>

#include "macros.h"

DVAE_BEGIN_CORE

#if defined(__CUDA_ARCH__)
struct SpecialFunctions {
#define DVAE_UNIT(name, instruction)                \
  static DVAE_HD float name(float x) {              \
    float y;                                        \
    asm(instruction " %0, %1;" : "=f"(y) : "f"(x)); \
    return y;                                       \
  }
  DVAE_UNIT(exp2, "ex2.approx.ftz.f32")
  DVAE_UNIT(reciprocal, "rcp.approx.ftz.f32")
  DVAE_UNIT(log2, "lg2.approx.ftz.f32")
  DVAE_UNIT(sqrt, "sqrt.approx.ftz.f32")
  DVAE_UNIT(sine, "sin.approx.ftz.f32")
  DVAE_UNIT(cosine, "cos.approx.ftz.f32")
#undef DVAE_UNIT
  // min(|x|, most), or NaN.
  static DVAE_HD float capped_magnitude(float x, float most) {
#if __CUDA_ARCH__ >= 800
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(::fabsf(x)), "f"(most));
    return y;
#else
    const float y = ::fabsf(x);
    return y > most ? most : y;
#endif
  }
  // x > 0 ? 1 : 0
  static DVAE_HD float is_positive(float x) {
    float y;
    asm("set.gt.f32.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
    return y;
  }
  // sum + u · v, but for u = 0, when v may be infinite, the sum.
  static DVAE_HD float add_product(float sum, float u, float v) {
    asm("{\n"
        " .reg .pred p;\n"
        " setp.neu.f32 p, %1, 0f00000000;\n"
        " @p fma.rn.f32 %0, %1, %2, %0;\n"
        "}"
        : "+f"(sum)
        : "f"(u), "f"(v));
    return sum;
  }
};
#endif

// e^−|x|; results below the smallest normal float are 0. 5 ulp. Coarse, 4.2e-6 of it, for the
// product x log2 e is rounded: 2e-6 of one above 1e-9, below which it is lost in any sum it is part
// of.
template <class Chip, bool kCoarse>
DVAE_HD float exp_minus_magnitude(float x) {
  if constexpr (kCoarse) return Chip::exp2(::fabsf(x) * -1.44269502f);
  // At most 2¹²⁶: of an infinite one the rest would be inf − inf.
  const float m = Chip::capped_magnitude(x, 0x1p126f);
  // 2^t, and what rounding took from t put back.
  const float t = m * -1.44269502f;
  const float rest = ::fmaf(t, -0.693147182f, -m);
  const float y = Chip::exp2(t);
  return ::fmaf(y, rest, y);
}

// σ(x), right to 4.5e-6 of it, and 2e-6 of one above 1e-9. At e^−x = inf it is 0.
template <class Chip>
DVAE_HD float coarse_sigmoid(float x) {
  return Chip::reciprocal(1.0f + Chip::exp2(x * -1.44269502f));
}

// Box–Muller of two words, noise.h's normal_pair: u = (w0 + ½)/2³², θ = 2π w1/2³². Right to 1e-6 of
// its radius √(−2 log u), and the squares, which log_ratio takes, to 1.3e-6 of the radius's.
template <class Chip>
DVAE_HD void box_muller(uint32_t w0, uint32_t w1, float& n0, float& n1) {
  const float u = ::fmaf(static_cast<float>(w0), 0x1p-32f, 0x1p-33f);
  const float f = ::fmaf(static_cast<float>(~w0), 0x1p-32f, 0x1p-33f);  // 1 − u
  // The chip's logarithm errs by 2⁻²² in [½, 1], where it goes to 0: there the series of
  // −2 log(1 − f)/f in f, to 1.5e-7.
  float p = 2.36986306f;
  p = ::fmaf(p, f, -2.16308053f);
  p = ::fmaf(p, f, 1.57086216f);
  p = ::fmaf(p, f, 0.0760360894f);
  p = ::fmaf(p, f, 0.544501083f);
  p = ::fmaf(p, f, 0.663725239f);
  p = ::fmaf(p, f, 1.00007309f);
  p = ::fmaf(p, f, 1.9999997f);
  const float by_chip = Chip::log2(u) * -1.38629436f;
  const float square = static_cast<int32_t>(w0) < 0 ? p * f : by_chip;
  const float angle = static_cast<float>(static_cast<int32_t>(w1)) * 1.46291807926715968e-9f;
  const float c = Chip::cosine(angle), s = Chip::sine(angle);
  // 1/√(c² + s²) to first order: what is left of the errors of c and s lies along the circle, and
  // comes to nothing in the square of a c or s near 1.
  const float length = ::fmaf(::fmaf(c, c, s * s), -0.5f, 1.5f);
  const float radius = Chip::sqrt(square) * length;
  n0 = radius * c;
  n1 = radius * s;
}

DVAE_END_CORE
