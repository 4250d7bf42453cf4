// log Γ and its derivative without their large terms, which vectorise and do not cancel.
//
//   log Γ(z) = z log z − z + J(z) and ψ(z) = log z + K(z), J and K of the size of log z and 1/z;
// what a likelihood needs of z log z − z it makes of all its terms together, in which they cancel.
// From z = kEnd on J and K are Stirling's series, below it they are made of Γ(1 + z), with the
// singular part at 0 by itself:
//   J(z) = B(z) − ½ log z  and  K(z) = U(z) − 1/(2z)       for z >= kEnd,
//   J(z) = B(z) − (1 + z) log z  and  K(z) = U(z) − 1/z − log z  below.
#pragma once

#include "math.h"

DVAE_BEGIN_CORE

template <class A>
struct Gamma;

// In float B and U are polynomials, right to 1.2e-7 and 3e-7.
template <>
struct Gamma<float> {
  static constexpr float kEnd = 1;

  DVAE_HD static float smooth(float z) {
    float s = -1.58715877e-4f;
    const float r = 1.0f / z;
    s = s * r + 4.12550056e-4f;
    s = s * r + 3.66443302e-4f;
    s = s * r - 2.91223684e-3f;
    s = s * r + 2.1158834e-5f;
    s = s * r + 8.3332248e-2f;
    // log Γ(1 + z)/z + 1
    float g = -3.96471284e-3f;
    g = g * z + 2.41053067e-2f;
    g = g * z - 6.90362081e-2f;
    g = g * z + 1.29651845e-1f;
    g = g * z - 1.93025604e-1f;
    g = g * z + 2.67293513e-1f;
    g = g * z - 4.00247008e-1f;
    g = g * z + 8.22437823e-1f;
    g = g * z + 4.22784984e-1f;
    return z < kEnd ? z * g : 0.918938533f + r * s;
  }
  DVAE_HD static float slope(float z) {
    const float r = 1.0f / z;
    float s = -7.24941376e-4f;
    s = s * r + 3.04039847e-3f;
    s = s * r - 4.32440033e-3f;
    s = s * r - 3.31500283e-4f;
    s = s * r + 8.47827084e-3f;
    s = s * r - 2.11139813e-5f;
    s = s * r - 8.33323896e-2f;
    // ψ(1 + z)
    float g = 2.47285217e-2f;
    g = g * z - 1.46381542e-1f;
    g = g * z + 4.00536507e-1f;
    g = g * z - 6.9516331e-1f;
    g = g * z + 9.05494273e-1f;
    g = g * z - 1.01111913f;
    g = g * z + 1.07878304f;
    g = g * z - 1.20180535f;
    g = g * z + 1.64492702f;
    g = g * z - 0.577215612f;
    return z < kEnd ? g : r * r * s;
  }
};

// In double they are Stirling's series Σ c_i z^(1 − 2i), c_i = B_2i / (2i (2i − 1)), whose first
// eight terms leave less than 1e-17 from 10 on. Smaller arguments go 10 steps up, by
// Γ(z + 10) = Γ(1 + z) (z + 1) … (z + 9).
template <>
struct Gamma<double> {
  static constexpr double kEnd = 10;

  DVAE_HD static double smooth(double z) {
    if (!(z < kEnd)) return kHalfLog2Pi + series(1 / z);
    const double up = z + kEnd;
    double p = z + 1;
    for (int i = 2; i < kSteps; ++i) p = p * (z + i);
    return ((up - 0.5) * log(up) - kEnd) + (kHalfLog2Pi + series(1 / up)) - log(p);
  }
  DVAE_HD static double slope(double z) {
    if (!(z < kEnd)) return derivative(1 / z);
    const double up = z + kEnd;
    double steps = 0;
    for (int i = 1; i < kSteps; ++i) steps = steps + 1 / (z + i);
    return log(up) - 0.5 / up + derivative(1 / up) - steps;
  }

 private:
  static constexpr int kTerms = 8, kSteps = 10;
  static constexpr double kHalfLog2Pi = 0.91893853320467274178;

  DVAE_HD static constexpr double coefficient(int i) {
    constexpr double c[kTerms] = {1.0 / 12,   -1.0 / 360,        1.0 / 1260, -1.0 / 1680,
                                  1.0 / 1188, -691.0 / 360360.0, 1.0 / 156,  -3617.0 / 122400};
    return c[i];
  }
  DVAE_HD static double series(double r) {
    const double q = r * r;
    double s = coefficient(kTerms - 1);
    DVAE_UNROLL
    for (int i = kTerms - 2; i >= 0; --i) s = s * q + coefficient(i);
    return s * r;
  }
  // d series(1/z) / d z
  DVAE_HD static double derivative(double r) {
    const double q = r * r;
    double s = (1 - 2 * kTerms) * coefficient(kTerms - 1);
    DVAE_UNROLL
    for (int i = kTerms - 2; i >= 0; --i) s = s * q + (-1 - 2 * i) * coefficient(i);
    return s * q;
  }
};

// J(x + t) − J(t), t > 0.
template <class A>
DVAE_HD A log_gamma_rest(A t, A x) {
  using G = Gamma<A>;
  const A z = x + t;
  const bool low_z = z < G::kEnd, low_t = t < G::kEnd;
  // Where neither is low, ½ log t − ½ log z as one logarithm, which a large t is not lost in.
  const A of_z = log(z / (low_t ? A(1) : t));
  const A of_t = log(low_t ? t : A(1));
  const A times = low_z ? A(1) + z : A(0.5);
  return ((A(1) + t) * of_t - times * of_z) + (G::smooth(z) - G::smooth(t));
}

// K(x + t) − K(t).
template <class A>
DVAE_HD A digamma_rest(A t, A x) {
  using G = Gamma<A>;
  const A z = x + t;
  const bool low_z = z < G::kEnd, low_t = t < G::kEnd;
  // 1/t − 1/z is x/(z t).
  const A steps = (low_t ? A(1) : A(0.5)) * (x / z / t);
  const A change = (low_t ? A(0.5) : A(0)) * (low_z ? A(0) : A(1)) / z;
  const A logs = log((low_t ? t : A(1)) / (low_z ? z : A(1)));
  return (steps + change) + logs + (G::slope(z) - G::slope(t));
}

// log x! − x log x + x, at 0 too.
template <class A>
DVAE_HD A log_factorial_rest(A x) {
  const A counted = x == A(0) ? A(0) : A(1);
  const A y = log(x == A(0) ? A(1) : x);
  return counted * (Gamma<A>::smooth(x) + (x < Gamma<A>::kEnd ? -x : A(0.5)) * y);
}

DVAE_END_CORE
