// One struct per likelihood p(x|z): log-density and derivative, per element. A new one also has a
// line in params.h's list, and for CUDA three files that instantiate its kernels.
//
// A log-density is summed over elements in two accumulators (a, b): `push` takes in an element,
// `merge` another pair, `finish` gives the sum. After kMaxPush pushes into one pair, and after
// merging no more than four such pairs, `finish` must be called.
#pragma once

#include <type_traits>

#include "gamma.h"
#include "math.h"
#include "params.h"

DVAE_BEGIN_CORE

// What `push` is told of an element of which x may not be known: what it adds is keep(it), and 0
// then, whatever the element is.
struct KeepAll {
  template <class A>
  DVAE_HD A operator()(A value) const {
    return value;
  }
};

// What a likelihood is unless it says otherwise.
struct LikelihoodDefaults {
  // Whether its parameters are a pair (mean, scale), or one tensor.
  static constexpr bool kHasScale = false;
  // Whether row_constant is of Σ log scale where rows share their scale.
  static constexpr bool kHasLogScale = false;
  // What row_constant has of each element.
  static constexpr double kConstant = 0;
  // Whether log p has a part of x (and of a scale that rows share) alone: data_term, and its
  // derivative in that scale, data_derivative. Of one element; made once for all rows of an
  // example, as far as a kernel can, and left out of push and derivative.
  static constexpr bool kHasDataTerm = false;
  // Whether an element takes many registers: more than 128 of a CUDA thread in double.
  static constexpr bool kHeavy = false;
  static constexpr int kMaxPush = 32;  // a longer sum in one float would lose what it adds
  // Whether b is a product, whose logarithm `finish` takes, and finish_sum that of b = 0.
  static constexpr bool kProduct = false;
  // Whether push_with_derivative takes little more than push, whose bits its sums must be.
  static constexpr bool kPushDerives = false;
  // Whether an element is so little work that to leave it out by a choice soon costs less than to
  // move the others.
  static constexpr bool kLight = false;

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

// For sums of which b is 0, or below where a parameter was that may not be: one instruction an
// element, where a choice takes two and keeps some loops scalar.
struct Least {
  template <class A, class K>
  DVAE_HD static void push(A& b, A parameter, K keep) {
    const A kept = keep(parameter);
    b = kept < b ? kept : b;
  }
  template <class A>
  DVAE_HD static A finish(A sum, A b) {
    return b < A(0) ? quiet_nan<A>() : sum;
  }
};

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

// log p = −½ u² − log s − ½ log 2π, u = (x − mean)/s. a = Σ u², b = Σ log s.
// The constant, and log s where s is shared by all rows, are added once a row.
struct Gaussian : LikelihoodDefaults {
  static constexpr bool kHasScale = true;
  static constexpr bool kLight = true;
  static constexpr bool kHasLogScale = true;
  static constexpr double kConstant = -0.91893853320467274178;  // −½ log 2π

  template <ScaleKind kScale, class A, class K = KeepAll>
  DVAE_HD static void push(A& a, A& b, A mean, A scale, A x, K keep = {}) {
    const A u = keep((x - mean) / scale);
    a = a + u * u;
    if constexpr (kScale == ScaleKind::kFull) b = b + keep(log(scale));
  }
  DVAE_HD static double row_constant(int64_t size, double log_scale_sum) {
    return kConstant * static_cast<double>(size) - log_scale_sum;
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
// (Salimans et al., arXiv 1701.05517, equation 2, with x in [0, 1]). a = −Σ log p, b = Least of s.
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
  DVAE_HD static Bin<A> bin(A mean, A given, A x) {
    const A scale = given + A(0);  // a −0 is 0
    const A h = A(kHalfBin), d = x - mean, middle = x - A(0.5);
    const bool open = abs(middle) > A(0.5) - h;
    Bin<A> v;
    v.sign = (open ? middle : d) < A(0) ? A(-1) : A(1);
    // Divided last: of an infinite mean or a tiny scale nothing becomes inf − inf.
    v.near = (v.sign * d - h) / scale;
    v.far = (v.sign * d + h) / scale;
    v.width = A(2 * kHalfBin) / scale;
    v.q = exp_nonpositive(-abs(v.near));
    v.p = only_if(!open, exp_nonpositive(-v.far));
    v.r = only_if(!open, exp_nonpositive(-v.width));
    v.rest = only_if(!open, one_minus_exp(v.width)) + one_if<A>(open);
    return v;
  }

  // −log p = max(near, 0) + log (1 + q)(1 + p)/(1 − r)
  template <ScaleKind, class A, class K = KeepAll>
  DVAE_HD static void push(A& a, A& b, A mean, A scale, A x, K keep = {}) {
    Least::push(b, scale, keep);
    const Bin<A> v = bin(mean, scale, x);
    const A linear = only_if(v.near > A(0), v.near);
    a = a + keep(linear + log1p((v.p + v.q + v.p * v.q + v.r) / v.rest));
  }
  // d log p / d mean = sign (σ(near) − σ(−far))/s,
  // d log p / d s = (near σ(near) − far σ(−far) − w r/(1 − r))/s
  template <ScaleKind, class A>
  DVAE_HD static void derivative(A mean, A given, A x, A& d_mean, A& d_scale) {
    const A scale = not_negative(given);
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
  DVAE_HD static A finish(A a, A b) {
    return Least::finish(-a, b);
  }
};

// Counts x with mean μ and inverse dispersion t (theta; the scale here): variance μ + μ²/t.
//   log p = log Γ(x + t)/(Γ(t) x!) + t log t/(t + μ) + x log μ/(t + μ)
// whose terms of the size of x log x cancel. So it is made of what is left of each log Γ without
// them (gamma.h's J), and of the deviance, two terms that are positive (Loader 2000, Fast and
// accurate computation of binomial probabilities):
//   log p = J(x + t) − J(t) − log x! + (x log x − x) − t g(u) − x g(−w),  g(y) = y − log(1 + y),
//   u = (x − μ)/(t + μ),  w = t (x − μ)/(x (t + μ)).
// As t goes to inf that goes to a Poisson's. Of x and t alone is all but the deviance: it is in
// data_term where rows share t. a = Σ of the rest, b = Least of μ and t.
struct NegativeBinomial : LikelihoodDefaults {
  static constexpr bool kHasScale = true;
  static constexpr bool kHasDataTerm = true;
  static constexpr bool kHeavy = true;
  static constexpr double kNear = 0.25;
  // From t = kMost on it is a Poisson in every digit, of means and counts to 1e18 (in double to
  // 1e84). A μ below kTiny is taken times kUp, so that μ/(t + μ) does not underflow.
  template <class A>
  struct Range {
    static constexpr bool kWide = sizeof(A) == 8;
    static constexpr A kMost = A(kWide ? 1e100 : 1e25);
    static constexpr A kTiny = A(kWide ? 0x1p-400 : 0x1p-40);
    static constexpr A kUp = A(kWide ? 0x1p500 : 0x1p100);
    static constexpr A kLogUp = A((kWide ? 500 : 100) * 0.69314718055994530942);
  };

  // inf/inf would not be that Poisson.
  template <class A>
  DVAE_HD static A capped(A scale) {
    return scale > Range<A>::kMost ? Range<A>::kMost : scale;
  }

  // μ, x − μ and 1/(t + μ), finite.
  template <class A>
  struct Means {
    A mean, difference, inverse;
  };
  template <class A>
  DVAE_HD static Means<A> means(A mean, A t, A x) {
    Means<A> v;
    v.mean = finite(mean);
    v.inverse = A(1) / (t + v.mean + A(1.17549435e-38f));
    v.difference = x - v.mean;
    return v;
  }
  // log (t + x)/(t + μ) besides u
  template <class A>
  DVAE_HD static LogRest<A> rest_of_t(const Means<A>& v, A t, A x) {
    return log_rest((x + t) * v.inverse, v.difference * v.inverse, A(kNear));
  }

  // Factors of 0 and 1, not choices: GCC 12 makes branches of choices that depend on each other,
  // and leaves the loop scalar.
  template <class A>
  DVAE_HD static A minus_deviance(A mean, A t, A x) {
    const Means<A> v = means(mean, t, x);
    const A zero = one_if<A>(x == A(0));
    // t u = x w: part of either g, so that where neither has its first term they need none.
    const A linear = t * v.inverse * v.difference;
    const LogRest<A> of_t = rest_of_t(v, t, x);
    // 1 − w = μ (x + t)/(x (t + μ)). At x = 0 its logarithm counts for nothing.
    const A tiny = one_if<A>(v.mean < Range<A>::kTiny);
    const A share = v.mean * (A(1) + tiny * Range<A>::kUp) * v.inverse;
    const A reciprocal_x = A(1) / (x + zero);
    const LogRest<A> of_x = log_rest(share * (A(1) + t * reciprocal_x), -linear * reciprocal_x,
                                     A(kNear) * (A(1) - zero));
    const A back = tiny * of_x.whole * -Range<A>::kLogUp;
    const A first = (of_t.whole - of_x.whole) * linear;
    const A y = (t * of_t.value - first) + x * (of_x.value + back);
    // −inf, where μ = 0 and x > 0 or where μ = inf.
    const A impossible = one_if<A>(share == A(0)) * x * largest<A>() * largest<A>();
    return y - impossible - (mean - v.mean);
  }

  template <ScaleKind kScale, class A, class K = KeepAll>
  DVAE_HD static void push(A& a, A& b, A mean, A scale, A x, K keep = {}) {
    Least::push(b, mean, keep);
    const A t = capped(scale);
    a = a + keep(minus_deviance(mean, t, x));
    if constexpr (kScale == ScaleKind::kFull) {
      Least::push(b, scale, keep);
      a = a + keep(gammas(t, x));
    }
  }
  // Exactly 0 at x = 0, of t = 0 too: not even rounding is left. t >= 0.
  template <class A>
  DVAE_HD static A gammas(A t, A x) {
    const A zero = one_if<A>(x == A(0));
    return (A(1) - zero) * log_gamma_rest(t + zero, x);
  }
  template <ScaleKind kScale, class A>
  DVAE_HD static A data_term([[maybe_unused]] A scale, A x) {
    A y = -log_factorial_rest(x);
    if constexpr (kScale == ScaleKind::kShared) y = y + gammas(not_negative(capped(scale)), x);
    return y;
  }
  template <class A>
  DVAE_HD static A data_derivative(A scale, A x) {
    const A zero = one_if<A>(x == A(0));
    return (A(1) - zero) * digamma_rest(not_negative(capped(scale)) + zero, x);
  }
  // d log p / d μ = (x/μ − 1) t/(t + μ),
  // d log p / d t = K(x + t) − K(t) + log (t + x)/(t + μ) − u
  template <ScaleKind kScale, class A>
  DVAE_HD static void derivative(A given, A scale, A x, A& d_mean, A& d_scale) {
    const A t = not_negative(capped(scale)), mean = not_negative(given);
    const Means<A> v = means(mean, t, x);
    const A zero = one_if<A>(x == A(0));  // then x/μ − 1 is −1, of μ = 0 too
    d_mean = (v.difference - zero) / (v.mean + zero) * (t * v.inverse);
    const LogRest<A> of_t = rest_of_t(v, t, x);
    const A first = of_t.whole * (v.difference * v.inverse);
    d_scale = (of_t.value - first) - (mean - v.mean);  // −inf at μ = inf
    if constexpr (kScale == ScaleKind::kFull) d_scale = d_scale + data_derivative(scale, x);
  }
  template <class A>
  DVAE_HD static A finish(A a, A b) {
    return Least::finish(a, b);
  }
};

// Counts x of mean and variance r, by the deviance too:
//   log p = −(log x! − x log x + x) − x g(r/x − 1),  g(y) = y − log(1 + y),
// of which the first is of x alone, in data_term, and −r at x = 0. NaN of a negative rate, as is
// what is made of it. a = Σ of the rest.
struct Poisson : LikelihoodDefaults {
  static constexpr bool kHasDataTerm = true;
  static constexpr double kNear = 0.25;

  template <class A>
  DVAE_HD static A minus_deviance(A rate, A x) {
    const A r = finite(rate);
    const A zero = one_if<A>(x == A(0));
    const A inverse = A(1) / (x + zero);
    const A difference = r - x;
    // A rate below 2⁻⁶⁰ times 2⁸⁰, so that r/x does not underflow.
    const A tiny = one_if<A>(r < A(0x1p-60));
    const A ratio = r * (A(1) + tiny * A(0x1p80)) * inverse;
    const LogRest<A> of_x = log_rest(ratio, difference * inverse, A(kNear) * (A(1) - zero));
    const A back = tiny * A(-55.451774444795624753);  // −80 log 2
    const A y = x * (of_x.value + of_x.whole * back) - of_x.whole * difference;
    // −inf, where r = 0 and x > 0 or where r = inf.
    const A impossible = one_if<A>(r == A(0)) * x * largest<A>() * largest<A>();
    return (y - impossible - (rate - r)) + nan_if<A>(rate < A(0));
  }

  template <bool kCoarse = false, class A, class K = KeepAll>
  DVAE_HD static void push(A& a, A&, A rate, A x, K keep = {}) {
    a = a + keep(minus_deviance(rate, x));
  }
  template <bool kCoarse = false, class A, class K = KeepAll>
  DVAE_HD static A push_with_derivative(A& a, A& b, A rate, A x, K keep = {}) {
    push(a, b, rate, x, keep);
    return derivative(rate, x);
  }
  // x/r − 1, −1 at x = 0 of r = 0 too.
  template <bool kCoarse = false, class A>
  DVAE_HD static A derivative(A rate, A x) {
    const A r = finite(rate);
    const A zero = one_if<A>(x == A(0));
    return ((x - r) - zero) / (r + zero) + nan_if<A>(rate < A(0));
  }
  template <ScaleKind, class A>
  DVAE_HD static A data_term(A, A x) {
    return -log_factorial_rest(x);
  }
  template <class A>
  DVAE_HD static A finish(A a, A) {
    return a;
  }
};

// Counts of a likelihood with log p(x) = `value`, of which each is zeroed with probability π =
// σ(l): log (1 − π) p(x), and log (π + (1 − π) p(0)) of a 0.
template <class A>
struct ZeroInflated {
  A e, log_sum, zeroed, kept;  // e^−|l|, log (1 + e); log π and log (1 − π) p(x), each + log_sum

  DVAE_HD ZeroInflated(A value, A logit)
      : e(exp_nonpositive(-abs(logit))),
        log_sum(log1p_unit(e)),
        zeroed(logit < A(0) ? logit : A(0)),
        kept((logit > A(0) ? -logit : A(0)) + value) {}
  // How much more likely a 0 is that was zeroed; 0 where neither may be.
  DVAE_HD A odds() const {
    const A d = zeroed - kept;
    return zeroed == kept ? A(0) : d;
  }
  DVAE_HD A log_prob(A x) const {
    const A larger = zeroed > kept ? zeroed : kept;
    const A either = larger + log1p_unit(exp_nonpositive(-abs(odds())));
    // A NaN of the value is in `kept` alone, and one of the logit in the sum.
    return (x == A(0) ? either : kept) - log_sum;
  }
  // What part of a 0's probability is the likelihood's: its derivative counts for as much.
  DVAE_HD A share(A x) const { return x == A(0) ? sigmoid(-odds()) : A(1); }
  // d log p / d l
  DVAE_HD A derivative(A logit, A x) const {
    return (x == A(0) ? sigmoid(odds()) : A(0)) - sigmoid_from(logit, e);
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
inline double row_constant(LikelihoodKind kind, int64_t size, double sum) {
  return with_likelihood(kind, [&](auto l) { return decltype(l)::type::row_constant(size, sum); });
}
// Whether log p of a row has something besides the sum over its elements.
inline bool has_row_constant(LikelihoodKind kind) {
  return has_log_scale(kind) || row_constant(kind, 1, 0.0) != 0;
}
inline bool is_light(LikelihoodKind kind) {
  return with_likelihood(kind, [](auto l) { return decltype(l)::type::kLight; });
}
inline bool has_data_term(LikelihoodKind kind) {
  return with_likelihood(kind, [](auto l) { return decltype(l)::type::kHasDataTerm; });
}

DVAE_END_CORE
