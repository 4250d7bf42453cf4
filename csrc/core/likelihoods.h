// One struct per likelihood p(x|z): log-density and derivative, per element (likelihood.h). A new
// one also has a line in params.h's list, and for CUDA three files that instantiate its kernels.
#pragma once

#include <type_traits>

#include "bernoulli.h"
#include "gamma.h"
#include "likelihood.h"
#include "math.h"
#include "params.h"

DVAE_BEGIN_CORE

// Of x = mean + scale · noise.
struct LocationScale : LikelihoodDefaults {
  static constexpr bool kHasScale = true;
  static constexpr bool kLight = true;
  static constexpr bool kHasLogScale = true;
};

// log p = −½ u² − log s − ½ log 2π, u = (x − mean)/s. a = Σ u², b = Σ log s.
// The constant, and log s where s is shared by all rows, are added once a row.
struct Gaussian : LocationScale {
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

// log p = −|u| − log 2 s, u = (x − mean)/s, otherwise as a Gaussian. a = Σ |u|, b = Σ log s.
struct Laplace : LocationScale {
  static constexpr double kConstant = -0.69314718055994530942;  // −log 2

  template <ScaleKind kScale, class A, class K = KeepAll>
  DVAE_HD static void push(A& a, A& b, A mean, A scale, A x, K keep = {}) {
    a = a + keep(abs((x - mean) / scale));
    if constexpr (kScale == ScaleKind::kFull) b = b + keep(log(scale));
  }
  DVAE_HD static double row_constant(int64_t size, double log_scale_sum) {
    return kConstant * static_cast<double>(size) - log_scale_sum;
  }
  // (sign(u)/s, (|u| − 1)/s), of which the first is 0 at x = mean.
  template <ScaleKind, class A>
  DVAE_HD static void derivative(A mean, A scale, A x, A& d_mean, A& d_scale) {
    const A d = x - mean;
    const A sign = one_if<A>(d > A(0)) - one_if<A>(d < A(0)) + nan_if<A>(d != d);
    d_mean = sign / scale;
    d_scale = (abs(d / scale) - A(1)) / scale;
  }
  template <class A>
  DVAE_HD static A finish(A a, A b) {
    return -(a + b);
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
struct Poisson : DerivedApart<Poisson> {
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
