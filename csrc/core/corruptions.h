// One struct per corruption p(x̃|x): the draw and its derivative, per element.
//
// Discrete corruptions compare a 24-bit uniform with thresholds (see noise.h): `hit` is that of
// the rate, `one` that of rate · salt, so one uniform decides whether and what.
#pragma once

#include "macros.h"

DVAE_BEGIN_CORE

struct Identity {
  static constexpr bool kRandom = false;
};

struct Masking {
  static constexpr bool kRandom = true;
  template <class A>
  DVAE_HD static A apply(A x, int32_t u, int32_t hit, int32_t /*one*/) {
    return u < hit ? A(0) : x;
  }
  template <class A>
  DVAE_HD static A derivative(A grad, int32_t u, int32_t hit) {
    return u < hit ? A(0) : grad;
  }
};

struct SaltAndPepper {
  static constexpr bool kRandom = true;
  template <class A>
  DVAE_HD static A apply(A x, int32_t u, int32_t hit, int32_t one) {
    return u < one ? A(1) : u < hit ? A(0) : x;
  }
  template <class A>
  DVAE_HD static A derivative(A grad, int32_t u, int32_t hit) {
    return u < hit ? A(0) : grad;
  }
};

struct BitFlip {
  static constexpr bool kRandom = true;
  template <class A>
  DVAE_HD static A apply(A x, int32_t u, int32_t hit, int32_t /*one*/) {
    return u < hit ? A(1) - x : x;
  }
  template <class A>
  DVAE_HD static A derivative(A grad, int32_t u, int32_t hit) {
    return u < hit ? -grad : grad;
  }
};

struct AdditiveGaussian {
  // x̃ = x + σ n; ∂x̃/∂x = 1, ∂x̃/∂σ = n
  template <class A>
  DVAE_HD static A apply(A x, A normal, A std) {
    return x + std * normal;
  }
};

DVAE_END_CORE
