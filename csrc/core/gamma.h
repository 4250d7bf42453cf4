// log Γ of x + 1, and what log Γ(x + t) − log Γ(t) is made of, which vectorise and do not cancel.
//
// Stirling's series, log Γ(z) = (z − ½) log z − z + ½ log 2π + S(1/z) with S(r) = Σ c_i r^(2i − 1),
// c_i = B_2i / (2i (2i − 1)), is used from z = kShift on, where its first kTerms leave less than
// 1e-8 of log Γ and of its derivative in float, and 1e-17 in double. Smaller arguments go kShift
// steps up, by Γ(z + n) = Γ(z) z (z + 1) … (z + n − 1).
#pragma once

#include "math.h"

DVAE_BEGIN_CORE

template <class A>
struct Stirling {
  static constexpr bool kDouble = sizeof(A) == 8;
  static constexpr int kShift = kDouble ? 10 : 4;
  static constexpr int kTerms = kDouble ? 8 : 4;

  DVAE_HD static constexpr A coefficient(int i) {
    constexpr A c[8] = {A(1.0 / 12),   A(-1.0 / 360),        A(1.0 / 1260), A(-1.0 / 1680),
                        A(1.0 / 1188), A(-691.0 / 360360.0), A(1.0 / 156),  A(-3617.0 / 122400)};
    return c[i];
  }
  // S(r)
  DVAE_HD static A series(A r) {
    const A q = r * r;
    A s = coefficient(kTerms - 1);
    DVAE_UNROLL
    for (int i = kTerms - 2; i >= 0; --i) s = s * q + coefficient(i);
    return s * r;
  }
  // d S(1/z) / d z = −Σ (2i − 1) c_i r^2i
  DVAE_HD static A derivative(A r) {
    const A q = r * r;
    A s = A(1 - 2 * kTerms) * coefficient(kTerms - 1);
    DVAE_UNROLL
    for (int i = kTerms - 2; i >= 0; --i) s = s * q + A(-1 - 2 * i) * coefficient(i);
    return s * q;
  }
  // (z + 1) … (z + kShift − 1), and its derivative: what the steps up are made of besides z, which
  // may be tiny or huge where this is not. Past `most` it is left as it is there.
  DVAE_HD static A rising(A z, A& derivative) {
    constexpr A most = kDouble ? A(1e30) : A(1e12);
    const A at = z > most ? most : z;
    A p = at + A(1), d = 1;
    DVAE_UNROLL
    for (int i = 2; i < kShift; ++i) {
      d = d * (at + A(i)) + p;
      p = p * (at + A(i));
    }
    derivative = d;
    return p;
  }
  DVAE_HD static A rising(A z) {
    A unused;
    return rising(z, unused);
  }
};

// log x!, x = 0, 1, 2, …; exactly 0 for 0 and 1.
template <class A>
DVAE_HD A log_factorial(A x) {
  using S = Stirling<A>;
  const A z = x + A(1);
  const bool small = z < A(S::kShift);
  const A up = small ? z + A(S::kShift) : z;
  const A steps = small ? z * S::rising(z) : A(1);
  const A y = ((up - A(0.5)) * log(up) - up) + (A(0.91893853320467274178) + S::series(A(1) / up));
  // A factor, not a choice, which GCC would make a branch of.
  const A of_one = x == A(1) ? A(0) : A(1);
  return (x == A(0) ? A(0) : of_one) * (y - log(steps));
}

DVAE_END_CORE
