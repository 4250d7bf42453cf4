// One struct per corruption p(x̃|x): the draw and its derivative, per element.
//
// Discrete corruptions compare a 24-bit uniform with thresholds (see noise.h): `hit` is that of
// the rate, `one` that of rate · salt, so one uniform decides whether and what.
#pragma once

#include "macros.h"

// Every corruption: X(its struct below, its name in the operators).
#define DVAE_CORRUPTION_LIST(X)       \
  X(Identity, "identity")             \
  X(Masking, "masking")               \
  X(SaltAndPepper, "salt_and_pepper") \
  X(BitFlip, "bit_flip")              \
  X(AdditiveGaussian, "gaussian")

// Not in an ISA's namespace, as in params.h.
namespace dvae {

#define DVAE_KIND(C, name) k##C,
enum class CorruptionKind : int { DVAE_CORRUPTION_LIST(DVAE_KIND) };
#undef DVAE_KIND

#define DVAE_NAME(C, name) name,
constexpr const char* kCorruptionNames[] = {DVAE_CORRUPTION_LIST(DVAE_NAME)};
#undef DVAE_NAME

// What a corruption draws for an element.
enum class Draws { kNothing, kUniform, kNormal };

}  // namespace dvae

DVAE_BEGIN_CORE

struct Identity {
  static constexpr Draws kDraws = Draws::kNothing;
};

// A hit element is made something that does not depend on it.
struct Replaced {
  static constexpr Draws kDraws = Draws::kUniform;
  template <class A>
  DVAE_HD static A derivative(A grad, int32_t u, int32_t hit) {
    return u < hit ? A(0) : grad;
  }
};

struct Masking : Replaced {
  template <class A>
  DVAE_HD static A apply(A x, int32_t u, int32_t hit, int32_t /*one*/) {
    return u < hit ? A(0) : x;
  }
};

struct SaltAndPepper : Replaced {
  template <class A>
  DVAE_HD static A apply(A x, int32_t u, int32_t hit, int32_t one) {
    return u < one ? A(1) : u < hit ? A(0) : x;
  }
};

struct BitFlip {
  static constexpr Draws kDraws = Draws::kUniform;
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
  static constexpr Draws kDraws = Draws::kNormal;
  // x̃ = x + σ n; ∂x̃/∂x = 1, ∂x̃/∂σ = n
  template <class A>
  DVAE_HD static A apply(A x, A normal, A std) {
    return x + std * normal;
  }
};

// Calls body(C()) for the corruption of a kind, and returns what that does.
template <class F>
auto with_corruption(CorruptionKind kind, const F& body) {
  switch (kind) {
#define DVAE_CASE(C, name)   \
  case CorruptionKind::k##C: \
    return body(C());
    DVAE_CORRUPTION_LIST(DVAE_CASE)
#undef DVAE_CASE
  }
  __builtin_unreachable();
}

DVAE_END_CORE
