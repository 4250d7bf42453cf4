// One struct per likelihood p(x|z): log-density and derivative, per element. A new one also has a
// line in params.h's list, and for CUDA three files that instantiate its kernels.
//
// A log-density is summed over elements in two accumulators (a, b): `push` takes in an element,
// `merge` another pair, `finish` gives the sum. After kMaxPush pushes into one pair, and after
// merging no more than four such pairs, `finish` must be called.
#pragma once

#include "gamma.h"
#include "math.h"
#include "params.h"

DVAE_BEGIN_CORE

// What a likelihood is unless it says otherwise.
struct LikelihoodDefaults {
  // Whether its parameters are a pair (mean, scale), or one tensor.
  static constexpr bool kHasScale = false;
  // Whether row_constant is of Σ log scale where rows share their scale.
  static constexpr bool kHasLogScale = false;
  // Whether log p has a part of x (and of a scale that rows share) alone: data_term, and its
  // derivative in that scale, data_derivative. Of one element; made once for all rows of an
  // example, as far as a kernel can, and left out of push and derivative.
  static constexpr bool kHasDataTerm = false;
  // Whether an element takes many registers: more than 128 of a CUDA thread in double.
  static constexpr bool kHeavy = false;
  static constexpr int kMaxPush = 64;  // a longer sum in one float would lose what it adds

  template <ScaleKind kScale, class A>
  DVAE_HD static A data_term(A, A) {
    return A(0);
  }
  // What log p of a row has besides that, given Σ log scale if kHasLogScale and the rows share
  // their scale, else 0.
  DVAE_HD static double row_constant(int64_t, double) { return 0; }
  template <class A>
  DVAE_HD static void merge(A& a, A& b, A a2, A b2) {
    a = a + a2;
    b = b + b2;
  }
};

// log p = x l − log(1 + e^l) = −(c |l| + log1p(e)), e = e^−|l|, c = 1 − x if l > 0 else x.
// a = Σ c |l|. b = Π (1 + e) − 1, so that one logarithm serves many elements; kept without its
// leading 1, so that tiny e are not lost: (1 + b)(1 + e) − 1 = b + e (1 + b).
struct Bernoulli : LikelihoodDefaults {
  // 1 + e <= 2: four merged pairs stay below 2¹²⁰.
  static constexpr int kMaxPush = 30;

  // kCoarse: of a 16-bit logit, for which device code takes the coarse e.
  template <bool kCoarse = false, class A>
  DVAE_HD static A push(A& a, A& b, A logit, A x) {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(A) == 4) {
      return ChipTerms<SpecialFunctions, kCoarse>(logit, x).push(a, b);
    }
#endif
    const A magnitude = abs(logit);
    const A e = exp_nonpositive(-magnitude);
    const A c = logit > A(0) ? A(1) - x : x;
    // At l = ±inf a term with c = 0 is 0, not 0 · inf. The choice is of a factor, not of the
    // product: then every compiler fuses product and sum everywhere, and equal sums are equal bits.
    const A factor = c == A(0) ? A(0) : magnitude;
    a = a + c * factor;
    b = b + e * (A(1) + b);
    return e;
  }
  // The same, and d log p / d l = x − σ(l).
  template <bool kCoarse = false, class A>
  DVAE_HD static A push_with_derivative(A& a, A& b, A logit, A x) {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(A) == 4) {
      const ChipTerms<SpecialFunctions, kCoarse> terms(logit, x);
      terms.push(a, b);
      return terms.derivative();
    }
#endif
    const A e = push(a, b, logit, x);
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
};

// log p = −½ u² − log s − ½ log 2π, u = (x − mean)/s. a = Σ u², b = Σ log s.
// The constant, and log s where s is shared by all rows, are added once a row.
struct Gaussian : LikelihoodDefaults {
  static constexpr bool kHasScale = true;
  static constexpr bool kHasLogScale = true;
  static constexpr double kHalfLog2Pi = 0.91893853320467274178;

  template <ScaleKind kScale, class A>
  DVAE_HD static void push(A& a, A& b, A mean, A scale, A x) {
    const A u = (x - mean) / scale;
    a = a + u * u;
    if constexpr (kScale == ScaleKind::kFull) b = b + log(scale);
  }
  DVAE_HD static double row_constant(int64_t size, double log_scale_sum) {
    return -(kHalfLog2Pi * static_cast<double>(size) + log_scale_sum);
  }
  // (d log p / d mean, d log p / d scale) = (u/s, (u² − 1)/s)
  template <ScaleKind, class A>
  DVAE_HD static void derivative(A mean, A scale, A x, A& d_mean, A& d_scale) {
    const A u = (x - mean) / scale;
    d_mean = u / scale;
    d_scale = (u * u - A(1)) / scale;
  }
  template <class A>
  DVAE_HD static A finish(A a, A b) {
    return A(-0.5) * a - b;
  }
};

// A logistic's mass in the bin x ± h, h = ½/255, of 256 bins, the first and last of which are open
// (Salimans et al., arXiv 1701.05517, equation 2, with x in [0, 1]). a = −Σ log p.
//
// Seen from the mean, the bin lies between near = (|x − mean| − h)/s and far = (|x − mean| + h)/s,
// w = far − near wide, and
//   p = σ(far) − σ(near) = σ(−near) σ(far) (1 − e^−w),
// three factors whose logarithms all are negative: nothing cancels. An open bin has far = w = inf.
struct DiscretisedLogistic : LikelihoodDefaults {
  static constexpr bool kHasScale = true;
  static constexpr bool kHeavy = true;
  static constexpr double kHalfBin = 0.5 / 255;

  // sign: which way from the mean `near` counts. p = e^−far, q = e^−|near|, r = e^−w, rest = 1 − r.
  template <class A>
  struct Bin {
    A sign, near, far, width, p, q, r, rest;
  };
  template <class A>
  DVAE_HD static Bin<A> bin(A mean, A scale, A x) {
    const A h = A(kHalfBin), d = x - mean, middle = x - A(0.5);
    const bool open = abs(middle) > A(0.5) - h;
    Bin<A> v;
    v.sign = (open ? middle : d) < A(0) ? A(-1) : A(1);
    // Divided last: of an infinite mean or a tiny scale nothing becomes inf − inf.
    v.near = (v.sign * d - h) / scale;
    v.far = (v.sign * d + h) / scale;
    v.width = A(2 * kHalfBin) / scale;
    v.q = exp_nonpositive(-abs(v.near));
    v.p = open ? A(0) : exp_nonpositive(-v.far);
    v.r = open ? A(0) : exp_nonpositive(-v.width);
    v.rest = open ? A(1) : one_minus_exp(v.width);
    return v;
  }

  // −log p = max(near, 0) + log (1 + q)(1 + p)/(1 − r)
  template <ScaleKind, class A>
  DVAE_HD static void push(A& a, A&, A mean, A scale, A x) {
    const Bin<A> v = bin(mean, scale, x);
    const A linear = v.near > A(0) ? v.near : A(0);
    a = a + (linear + log1p((v.p + v.q + v.p * v.q + v.r) / v.rest));
  }
  // d log p / d mean = sign (σ(near) − σ(−far))/s,
  // d log p / d s = (near σ(near) − far σ(−far) − w r/(1 − r))/s
  template <ScaleKind, class A>
  DVAE_HD static void derivative(A mean, A scale, A x, A& d_mean, A& d_scale) {
    const Bin<A> v = bin(mean, scale, x);
    const A both = A(1) / ((A(1) + v.p) * (A(1) + v.q));
    const bool outside = v.near >= A(0);
    const A difference = outside ? A(1) - v.p * v.q : v.q - v.p;
    d_mean = v.sign * (difference * both) / scale;
    const A at_near = (outside ? A(1) : v.q) * (A(1) + v.p) * both;  // σ(near)
    const A at_far = v.p * (A(1) + v.q) * both;  // σ(−far)
    // e^−u has gone to 0 before u goes to inf; w/(1 − e^−w) goes to 1 with w.
    const A near_term = at_near == A(0) ? A(0) : v.near * at_near;
    const A far_term = at_far == A(0) ? A(0) : v.far * at_far;
    const A ratio = v.width > A(0) ? v.width / v.rest : A(1);
    const A width_term = v.r == A(0) ? A(0) : ratio * v.r;
    d_scale = (near_term - far_term - width_term) / scale;
  }
  template <class A>
  DVAE_HD static A finish(A a, A) {
    return -a;
  }
};

// Counts x with mean μ and inverse dispersion t (theta; the scale here): variance μ + μ²/t.
//   log p = log Γ(x + t)/Γ(t) − log x! + t log t/(t + μ) + x log μ/(t + μ)
// With Stirling's series for both Γ, of t' = t (or, where t < kShift, t + kShift),
//   log Γ(x + t')/Γ(t') = x log(x + t') + (t' − ½) log1p(x/t') − x + S(1/(x + t')) − S(1/t'),
// in which the log t' that the two have in common does not appear: t may be as large as it likes,
// and log p goes to a Poisson's. The ratio of the Γ is the most work by far; where rows share t
// they share the ratio, which then is in data_term. a = Σ of the rest.
struct NegativeBinomial : LikelihoodDefaults {
  static constexpr bool kHasScale = true;
  static constexpr bool kHasDataTerm = true;
  static constexpr bool kHeavy = true;

  // By then a Poisson in every digit; inf/inf would not be.
  template <class A>
  DVAE_HD static A capped(A scale) {
    return scale > A(1e20) ? A(1e20) : scale;
  }

  // μ/t, at most the largest number for a finite μ, so that t log1p(μ/t) goes to 0 with t.
  template <class A>
  DVAE_HD static A odds(A mean, A t) {
    const A most = mean < infinity<A>() ? largest<A>() : infinity<A>();
    const A ratio = mean / t;
    return ratio > most ? most : ratio;
  }

  // What log Γ(x + t)/Γ(t) and its derivative are made of.
  template <class A>
  struct Gammas {
    A up, total, r_up, r_total, log_up;
    A counted;  // 0 at x = 0, where not even rounding is to be left
    bool small;
  };
  template <class A>
  DVAE_HD static Gammas<A> gammas(A t, A x) {
    Gammas<A> v;
    v.small = t < A(Stirling<A>::kShift);
    v.up = v.small ? t + A(Stirling<A>::kShift) : t;
    v.total = x + v.up;
    v.r_up = A(1) / v.up;
    v.r_total = A(1) / v.total;
    v.log_up = log1p(x * v.r_up);
    v.counted = x == A(0) ? A(0) : A(1);
    return v;
  }
  // log Γ(x + t)/Γ(t) − x log(x + t'); the latter is left to the caller.
  template <class A>
  DVAE_HD static A log_ratio(const Gammas<A>& v, A t, A x) {
    using S = Stirling<A>;
    // log t/(x + t) by itself: the quotient of a tiny t and a large x underflows.
    const A z = x + t;
    const A first = log(v.small ? t : A(1)) - log(v.small ? z : A(1));
    const A others = log(v.small ? S::rising(t) / S::rising(z) : A(1));
    const A series = S::series(v.r_total) - S::series(v.r_up);
    return ((v.up - A(0.5)) * v.log_up - x) + series + (first + others);
  }
  // ψ(x + t) − ψ(t)
  template <class A>
  DVAE_HD static A slope(const Gammas<A>& v, A t, A x) {
    using S = Stirling<A>;
    const A z = x + t;
    A d_bottom, d_top;
    const A bottom = S::rising(t, d_bottom), top = S::rising(z, d_top);
    // 1/t − 1/z is x/(z t)
    const A difference = x / z / t + (d_bottom / bottom - d_top / top);
    const A steps = v.small ? difference : A(0);
    const A series = S::derivative(v.r_total) - S::derivative(v.r_up);
    return v.counted * (v.log_up + A(0.5) * (v.r_up - v.r_total) + series + steps);
  }

  template <ScaleKind kScale, class A>
  DVAE_HD static void push(A& a, A&, A mean, A scale, A x) {
    const A t = capped(scale);
    // μ/(t + μ), which at μ = inf is 1, of a μ below 2⁻⁶⁰ times 2⁸⁰: a tiny one does not underflow.
    // For x = 0 its logarithm counts for nothing, if it is −inf.
    const bool tiny = mean < A(0x1p-60);
    const A scaled = mean * (tiny ? A(0x1p80) : A(1));
    const A share = mean == infinity<A>() ? A(1) : scaled / (t + mean);
    const A back = tiny ? A(-55.451774444795624753) : A(0);  // −80 log 2
    A counts;
    if constexpr (kScale == ScaleKind::kFull) {
      const Gammas<A> v = gammas(t, x);
      const A power = x * (log(x == A(0) ? A(1) : share * v.total) + back);
      counts = v.counted * (power + log_ratio(v, t, x));
    } else {
      counts = x * (log(x == A(0) ? A(1) : share) + back);
    }
    a = a + (counts - t * log1p(odds(mean, t)));
  }
  template <ScaleKind kScale, class A>
  DVAE_HD static A data_term([[maybe_unused]] A scale, A x) {
    A y = -log_factorial(x);
    if constexpr (kScale == ScaleKind::kShared) {
      const A t = capped(scale);
      const Gammas<A> v = gammas(t, x);
      y = y + v.counted * (x * log(v.total) + log_ratio(v, t, x));
    }
    return y;
  }
  template <class A>
  DVAE_HD static A data_derivative(A scale, A x) {
    const A t = capped(scale);
    return slope(gammas(t, x), t, x);
  }
  // d log p / d μ = (x/μ − 1) t/(t + μ),
  // d log p / d t = ψ(x + t) − ψ(t) − log (t + μ)/t + (μ − x)/(t + μ)
  template <ScaleKind kScale, class A>
  DVAE_HD static void derivative(A mean, A scale, A x, A& d_mean, A& d_scale) {
    const A t = capped(scale), ratio = odds(mean, t);
    const A relative = x == A(0) ? A(0) : x / mean;
    d_mean = (relative - A(1)) / (A(1) + ratio);
    const A pull = mean == infinity<A>() ? A(1) : (mean - x) / (t + mean);
    d_scale = pull - log1p(ratio);
    if constexpr (kScale == ScaleKind::kFull) d_scale = d_scale + data_derivative(scale, x);
  }
  template <class A>
  DVAE_HD static A finish(A a, A) {
    return a;
  }
};

// Calls body(Type<L>) for the likelihood of a kind, and returns what that does.
template <class L>
struct LikelihoodType {
  using type = L;
};
template <class F>
auto with_likelihood(LikelihoodKind kind, const F& body) {
  switch (kind) {
#define DVAE_CASE(L, name, unused) \
  case LikelihoodKind::k##L:       \
    return body(LikelihoodType<L>{});
    DVAE_LIKELIHOOD_LIST(DVAE_CASE, )
#undef DVAE_CASE
  }
  __builtin_unreachable();
}

inline bool has_scale(LikelihoodKind kind) {
  return with_likelihood(kind, [](auto l) { return decltype(l)::type::kHasScale; });
}
inline bool has_log_scale(LikelihoodKind kind) {
  return with_likelihood(kind, [](auto l) { return decltype(l)::type::kHasLogScale; });
}

DVAE_END_CORE
