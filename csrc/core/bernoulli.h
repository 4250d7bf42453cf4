// Likelihoods of data in [0, 1]: of a probability, by its logit or itself, and of a density.
#pragma once

#include "likelihood.h"

DVAE_BEGIN_CORE

// log p = x l − log(1 + e^l) = −(c |l| + log1p(e)), e = e^−|l|, c = 1 − x if l > 0 else x.
// a = Σ c |l|. b = Π (1 + e) − 1, so that one logarithm serves many elements; kept without its
// leading 1, so that tiny e are not lost: (1 + b)(1 + e) − 1 = b + e (1 + b).
struct Bernoulli : LikelihoodDefaults {
  // 1 + e <= 2: four merged pairs stay below 2¹²⁰.
  static constexpr int kMaxPush = 30;
  static constexpr bool kProduct = true;
  static constexpr bool kPushDerives = true;
  static constexpr bool kLight = true;

  // kCoarse: of a 16-bit logit, for which device code takes the coarse e.
  template <bool kCoarse = false, class A, class K = KeepAll>
  DVAE_HD static A push(A& a, A& b, A logit, A x, K keep = {}) {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(A) == 4) {
      return ChipTerms<SpecialFunctions, kCoarse>(logit, x).push(a, b);
    }
#endif
    const A magnitude = abs(logit);
    const A e = keep(exp_nonpositive(-magnitude));
    const A c = keep(logit > A(0) ? A(1) - x : x);
    // At l = ±inf a term with c = 0 is 0, not 0 · inf. The choice is of a factor, not of the
    // product: then every compiler fuses product and sum everywhere, and equal sums are equal bits.
    const A factor = c == A(0) ? A(0) : magnitude;
    a = a + c * factor;
    b = b + e * (A(1) + b);
    return e;
  }
  // The same, and d log p / d l = x − σ(l).
  template <bool kCoarse = false, class A, class K = KeepAll>
  DVAE_HD static A push_with_derivative(A& a, A& b, A logit, A x, K keep = {}) {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(A) == 4) {
      const ChipTerms<SpecialFunctions, kCoarse> terms(logit, x);
      terms.push(a, b);
      return terms.derivative();
    }
#endif
    const A e = push(a, b, logit, x, keep);
    return x - sigmoid_from(logit, e);
  }
  template <bool kCoarse = false, class A>
  DVAE_HD static A derivative(A logit, A x) {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(A) == 4) {
      return ChipTerms<SpecialFunctions, kCoarse>(logit, x).derivative();
    }
#endif
    return x - sigmoid(logit);
  }
  // The same without a choice to make, for device_math.h's chip. With s = 1 if l > 0 else 0 and
  // d = x − s, c |l| is −d l, and x − σ(l) is d ± σ(−|l|): + for l > 0.
  template <class Chip, bool kCoarse>
  struct ChipTerms {
    float logit, x, step, d, e;

    DVAE_HD ChipTerms(float logit_in, float x_in)
        : logit(logit_in),
          x(x_in),
          step(Chip::is_positive(logit_in)),
          d(x - step),
          e(exp_minus_magnitude<Chip, kCoarse>(logit_in)) {}
    DVAE_HD float push(float& a, float& b) const {
      a = Chip::add_product(a, d, -logit);
      b = ::fmaf(e, 1.0f + b, b);
      return e;
    }
    DVAE_HD float derivative() const {
      if constexpr (kCoarse) return x - coarse_sigmoid<Chip>(logit);
      const float sign = ::fmaf(step, 2.0f, -1.0f);
      return ::fmaf(e * Chip::reciprocal(1.0f + e), sign, d);
    }
  };
  template <class A>
  DVAE_HD static void merge(A& a, A& b, A a2, A b2) {
    a = a + a2;
    b = b + b2 * (A(1) + b);
  }
  template <class A>
  DVAE_HD static A finish(A a, A b) {
    return -(a + log1p(b));
  }
  template <class A>
  DVAE_HD static A finish_sum(A a) {
    return -a;
  }
};

// By the probability itself: log P = x log p + (1 − x) log (1 − p), of which a factor of 0 leaves
// out its term, whatever that is. NaN, and so is what is made of it, of a p outside [0, 1]. a = Σ.
struct BernoulliProbabilities : DerivedApart<BernoulliProbabilities> {
  template <class A>
  DVAE_HD static A nan_outside(A p) {
    return nan_if<A>(p < A(0)) + nan_if<A>(p > A(1));
  }

  template <bool kCoarse = false, class A, class K = KeepAll>
  DVAE_HD static void push(A& a, A&, A p, A x, K keep = {}) {
    const A one = only_if(x != A(0), x * log(p)), zero = only_if(x != A(1), (A(1) - x) * log1p(-p));
    a = a + keep(one + zero + nan_outside(p));
  }
  template <bool kCoarse = false, class A>
  DVAE_HD static A derivative(A p, A x) {
    const A one = only_if(x != A(0), x / p), zero = only_if(x != A(1), (A(1) - x) / (A(1) - p));
    return one - zero + nan_outside(p);
  }
  template <class A>
  DVAE_HD static A finish(A a, A) {
    return a;
  }
};

// On [0, 1], a density: log p = log C + x l − log(1 + e^l), C = l/tanh(l/2) (arXiv 1907.06845). In
// terms of m = |l| it is −(c m + log f), c as a Bernoulli's, f = (1 − e^−m)/m. a = Σ of that.
struct ContinuousBernoulli : DerivedApart<ContinuousBernoulli> {
  // m, so much above 0 that f is 1 there.
  template <class A>
  DVAE_HD static A above_zero(A m) {
    return m + A(1.17549435e-38f);
  }

  template <bool kCoarse = false, class A, class K = KeepAll>
  DVAE_HD static void push(A& a, A&, A logit, A x, K keep = {}) {
    const A m = abs(logit), most = finite(m), beyond = m - most;
    const A c = logit > A(0) ? A(1) - x : x;
    // At l = ±inf all of x is at one end: inf where c is 0, else −inf.
    const A s = above_zero(most + only_if(c == A(0), beyond));
    const A linear = c * most + only_if(c != A(0), beyond);
    a = a + keep(linear + log(one_minus_exp(s) / s));
  }
  // ±(h − c), + for l > 0, h = 1/m − 1/(e^m − 1), of which a small m leaves no digits: the series.
  template <bool kCoarse = false, class A>
  DVAE_HD static A derivative(A logit, A x) {
    const A m = abs(logit), s = above_zero(m), y = m * m;
    A p = A(1.0 / 47900160) - y * A(691.0 / 1307674368000.0);
    p = A(1.0 / 1209600) - y * p;
    p = A(1.0 / 30240) - y * p;
    p = A(1.0 / 720) - y * p;
    p = A(1.0 / 12) - y * p;
    const A near = A(0.5) - m * p;
    const A far = A(1) / s - exp_nonpositive(-m) / one_minus_exp(s);
    const A h = m < A(sizeof(A) == 4 ? 1 : 0.25) ? near : far;
    const A c = logit > A(0) ? A(1) - x : x;
    return logit > A(0) ? h - c : c - h;
  }
  template <class A>
  DVAE_HD static A finish(A a, A) {
    return -a;
  }
};

DVAE_END_CORE
