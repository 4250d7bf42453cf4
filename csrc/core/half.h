// bfloat16 and float16 as 16-bit storage, converted by integer arithmetic that vectorises, and in
// device code by its own instructions, as far as the chip has them: bfloat16's and those for pairs
// came with 8.0.
#pragma once

#include <type_traits>

#include "macros.h"

DVAE_BEGIN_CORE

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The type sums are kept in: float64 for float64, float32 for the rest.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

DVAE_HD float load(float v) { return v; }
DVAE_HD double load(double v) { return v; }
DVAE_HD float load(BFloat16 v) { return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }
DVAE_HD float load(Half v) {
#if defined(__CUDA_ARCH__)
  float to;
  asm("cvt.f32.f16 %0, %1;" : "=f"(to) : "h"(v.bits));
  return to;
#else
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7FFFu) << 13;
  // Times 2¹¹² moves the exponent's bias from 15 to 127 and normalises denormals.
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7F800000u;  // inf and NaN
  return bit_cast<float>(sign | (magnitude >= 0x0F800000u ? special : finite));
#endif
}

DVAE_HD void store(float& to, float v) { to = v; }
DVAE_HD void store(double& to, double v) { to = v; }
// Both round to nearest, ties to even; NaN stays a quiet NaN (by the chip, always 0x7FFF).
DVAE_HD void store(BFloat16& to, float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
#else
  const uint32_t bits = bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x0040u;
  to.bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
#endif
}
DVAE_HD void store(Half& to, float v) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
#else
  const uint32_t bits = bit_cast<uint32_t>(v);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const int32_t magnitude = static_cast<int32_t>(bits & 0x7FFFFFFFu);
  // 2¹⁶ and above are inf, whose bits the rounding of 2¹⁶ gives.
  const int32_t finite = magnitude < 0x47800000 ? magnitude : 0x47800000;
  // Normal: rebias, add just under half a unit of the kept bits (plus one if they are odd).
  const int32_t normal = (finite - 0x38000000 + 0x0FFF + ((finite >> 13) & 1)) >> 13;
  // Below 2⁻¹⁴ the unit is 2⁻²⁴ everywhere: adding ½ lets the float adder round to it.
  const int32_t denormal = bit_cast<int32_t>(bit_cast<float>(finite) + 0.5f) - 0x3F000000;
  // Masks, not ?: — GCC narrows a choice that will be cut to 16 bits, and then cannot vectorise it.
  const int32_t is_denormal = -static_cast<int32_t>(magnitude < 0x38800000);
  const int32_t quiet = -static_cast<int32_t>(magnitude > 0x7F800000) & 0x0200;
  const int32_t half = quiet | (denormal & is_denormal) | (normal & ~is_denormal);
  to.bits = static_cast<uint16_t>(sign | static_cast<uint32_t>(half));
#endif
}

// Two of them in one word, the first in its low half.
template <class T>
DVAE_HD uint32_t store_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t to;
  if constexpr (std::is_same_v<T, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(to) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(to) : "f"(second), "f"(first));
  }
  return to;
#else
  T low, high;
  store(low, first);
  store(high, second);
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
#endif
}

DVAE_END_CORE
