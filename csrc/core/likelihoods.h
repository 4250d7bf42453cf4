// One struct per likelihood p(x|z): log-density and derivative, per element.
//
// A log-density is summed over elements in two accumulators (a, b): `push` takes in an element,
// `merge` another pair, `finish` gives the sum. After kMaxPush pushes into one pair, and after
// merging no more than four such pairs, `finish` must be called.
#pragma once

#include "math.h"

DVAE_BEGIN_CORE

// log p = x l − log(1 + e^l) = −(c |l| + log1p(e)), e = e^−|l|, c = 1 − x if l > 0 else x.
// a = Σ c |l|. b = Π (1 + e) − 1, so that one logarithm serves many elements; kept without its
// leading 1, so that tiny e are not lost: (1 + b)(1 + e) − 1 = b + e (1 + b).
struct Bernoulli {
  static constexpr bool kHasScale = false;
  // 1 + e <= 2: four merged pairs stay below 2¹²⁰.
  static constexpr int kMaxPush = 30;

  template <class A>
  DVAE_HD static A push(A& a, A& b, A logit, A x) {
    const A magnitude = abs(logit);
    const A e = exp_nonpositive(-magnitude);
    const A c = logit > A(0) ? A(1) - x : x;
    // At l = ±inf a term with c = 0 is 0, not 0 · inf.
    a = a + (c == A(0) ? A(0) : c * magnitude);
    b = b + e * (A(1) + b);
    return e;
  }
  // The same, and d log p / d l = x − σ(l).
  template <class A>
  DVAE_HD static A push_with_derivative(A& a, A& b, A logit, A x) {
    const A e = push(a, b, logit, x);
    return x - sigmoid_from(logit, e);
  }
  template <class A>
  DVAE_HD static A derivative(A logit, A x) {
    return x - sigmoid(logit);
  }
  template <class A>
  DVAE_HD static void merge(A& a, A& b, A a2, A b2) {
    a = a + a2;
    b = b + b2 * (A(1) + b);
  }
  template <class A>
  DVAE_HD static A finish(A a, A b) {
    return -(a + log1p(b));
  }
};

// log p = −½ u² − log s − ½ log 2π, u = (x − mean)/s. a = Σ u², b = Σ log s.
// The constant, and log s where s is shared by all rows, are added once a row by the caller.
struct Gaussian {
  static constexpr bool kHasScale = true;
  static constexpr int kMaxPush = 64;  // a longer sum in one float would lose what it adds
  static constexpr double kHalfLog2Pi = 0.91893853320467274178;

  template <class A>
  DVAE_HD static void push(A& a, A mean, A scale, A x) {
    const A u = (x - mean) / scale;
    a = a + u * u;
  }
  template <class A>
  DVAE_HD static void push_log_scale(A& b, A scale) {
    b = b + log(scale);
  }
  // (d log p / d mean, d log p / d scale) = (u/s, (u² − 1)/s)
  template <class A>
  DVAE_HD static void derivative(A mean, A scale, A x, A& d_mean, A& d_scale) {
    const A u = (x - mean) / scale;
    d_mean = u / scale;
    d_scale = (u * u - A(1)) / scale;
  }
  template <class A>
  DVAE_HD static void merge(A& a, A& b, A a2, A b2) {
    a = a + a2;
    b = b + b2;
  }
  template <class A>
  DVAE_HD static A finish(A a, A b) {
    return A(-0.5) * a - b;
  }
};

DVAE_END_CORE
