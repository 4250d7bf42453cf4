// The likelihoods' structs of csrc/core, one element at a time, at ordinary values and at their
// limits.
#include <array>
#include <cmath>
#include <tuple>
#include <vector>

#include "core/likelihoods.h"
#include "formula_test.h"

namespace dvae::test {
namespace {

TYPED_TEST_SUITE(FormulaTest, Types);

// --- Bernoulli --------------------------------------------------------------------------------

template <class A>
struct BernoulliResult {
  A density, derivative;
};

template <class A>
BernoulliResult<A> bernoulli(A logit, A x) {
  A a = 0, b = 0;
  const A derivative = Bernoulli::push_with_derivative(a, b, logit, x);
  return {Bernoulli::finish(a, b), derivative};
}

TYPED_TEST(FormulaTest, BernoulliAgreesWithItsDefinition) {
  using A = TypeParam;
  for (const double l : {-90.0, -17.0, -3.3, -1e-4, 0.0, 1e-4, 0.7, 5.0, 33.0, 90.0}) {
    for (const double x : {0.0, 0.3, 0.5, 1.0}) {
      const auto got = bernoulli(A(l), A(x));
      const double log_sigmoid = -std::log1p(std::exp(-std::abs(A(l)))) + std::min<A>(A(l), 0);
      const double log_complement = -std::log1p(std::exp(-std::abs(A(l)))) - std::max<A>(A(l), 0);
      const double density = (x != 0 ? double(A(x)) * log_sigmoid : 0) +
                             (x != 1 ? (1 - double(A(x))) * log_complement : 0);
      EXPECT_NEAR(double(got.density), density, this->kError * std::abs(density) + 1e-37)
          << l << " " << x;
      const double sigmoid = 1 / (1 + std::exp(-double(A(l))));
      EXPECT_NEAR(double(got.derivative), double(A(x)) - sigmoid, this->kError) << l << " " << x;
      EXPECT_EQ(got.derivative, Bernoulli::derivative(A(l), A(x)));
    }
  }
}

TYPED_TEST(FormulaTest, BernoulliLimits) {
  using A = TypeParam;
  const A inf = infinity<A>(), nan = quiet_nan<A>();
  // log p(1) → 0 at +inf and −inf at −inf, and the reverse for log p(0); never NaN.
  EXPECT_EQ(bernoulli(inf, A(1)).density, A(0));
  EXPECT_EQ(bernoulli(-inf, A(0)).density, A(0));
  EXPECT_EQ(bernoulli(inf, A(0)).density, -inf);
  EXPECT_EQ(bernoulli(-inf, A(1)).density, -inf);
  EXPECT_EQ(bernoulli(inf, A(0.25)).density, -inf);
  EXPECT_EQ(bernoulli(-inf, A(0.25)).density, -inf);
  EXPECT_EQ(bernoulli(inf, A(1)).derivative, A(0));
  EXPECT_EQ(bernoulli(-inf, A(0)).derivative, A(0));
  EXPECT_EQ(bernoulli(inf, A(0)).derivative, A(-1));
  EXPECT_EQ(bernoulli(-inf, A(1)).derivative, A(1));
  for (const A x : {A(0), A(0.25), A(1)}) {
    EXPECT_TRUE(std::isnan(bernoulli(nan, x).density)) << x;
    EXPECT_TRUE(std::isnan(bernoulli(nan, x).derivative)) << x;
    EXPECT_TRUE(std::isnan(Bernoulli::derivative(nan, x))) << x;
  }
  EXPECT_TRUE(std::isnan(bernoulli(A(1), nan).density));
}

TYPED_TEST(FormulaTest, BernoulliProductHoldsAsManyAsPromised) {
  using A = TypeParam;
  // The largest factors, 1 + e^0 = 2, in four merged pairs of kMaxPush.
  A a[4] = {}, b[4] = {};
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < Bernoulli::kMaxPush; ++i) Bernoulli::push(a[pair], b[pair], A(0), A(0.5));
  }
  Bernoulli::merge(a[0], b[0], a[1], b[1]);
  Bernoulli::merge(a[2], b[2], a[3], b[3]);
  Bernoulli::merge(a[0], b[0], a[2], b[2]);
  const double expected = -4 * Bernoulli::kMaxPush * std::log(2);
  EXPECT_NEAR(double(Bernoulli::finish(a[0], b[0])), expected, this->kError * -expected);
}

TYPED_TEST(FormulaTest, BernoulliKeepsTinyTerms) {
  using A = TypeParam;
  // e^−40 is far below an ulp of 1, and must not be lost from 1 + b.
  A a = 0, b = 0;
  for (int i = 0; i < Bernoulli::kMaxPush; ++i) Bernoulli::push(a, b, A(40), A(1));
  const double expected = -Bernoulli::kMaxPush * std::exp(-40.0);
  EXPECT_NEAR(double(Bernoulli::finish(a, b)), expected, this->kError * -expected);
}

// --- Gaussian ---------------------------------------------------------------------------------

TYPED_TEST(FormulaTest, GaussianAgreesWithItsDefinition) {
  using A = TypeParam;
  for (const double m : {-2.0, 0.1, 0.9}) {
    for (const double s : {0.01, 0.7, 3.0}) {
      for (const double x : {0.0, 0.4, 1.0}) {
        A a = 0, b = 0, d_mean, d_scale;
        Gaussian::push<ScaleKind::kFull>(a, b, A(m), A(s), A(x));
        Gaussian::derivative<ScaleKind::kFull>(A(m), A(s), A(x), d_mean, d_scale);
        const double mean = double(A(m)), scale = double(A(s)), u = (double(A(x)) - mean) / scale;
        const double terms = 0.5 * u * u + std::abs(std::log(scale)) + 1;
        EXPECT_NEAR(double(Gaussian::finish(a, b)), -0.5 * u * u - std::log(scale),
                    this->kError * terms);
        EXPECT_NEAR(double(d_mean), u / scale, this->kError * std::abs(u / scale));
        EXPECT_NEAR(double(d_scale), (u * u - 1) / scale, this->kError * (u * u + 1) / scale);
      }
    }
  }
  EXPECT_DOUBLE_EQ(Gaussian::kConstant, -0.5 * std::log(2 * std::acos(-1.0)));
}

TYPED_TEST(FormulaTest, GaussianLimits) {
  using A = TypeParam;
  const A inf = infinity<A>(), nan = quiet_nan<A>();
  const auto density = [](A mean, A scale, A x) {
    A a = 0, b = 0;
    Gaussian::push<ScaleKind::kFull>(a, b, mean, scale, x);
    return Gaussian::finish(a, b);
  };
  EXPECT_EQ(density(inf, A(1), A(0)), -inf);
  EXPECT_EQ(density(-inf, A(1), A(0)), -inf);
  EXPECT_EQ(density(A(0), inf, A(1)), -inf);
  EXPECT_TRUE(std::isnan(density(nan, A(1), A(0))));
  EXPECT_TRUE(std::isnan(density(A(0), nan, A(0))));
  EXPECT_TRUE(std::isnan(density(A(0), A(1), nan)));
}

// --- continuous Bernoulli ---------------------------------------------------------------------

// log p and its derivative, of a likelihood of one parameter.
template <class L, class A>
std::pair<A, A> of_one(A param, A x) {
  A a = 0, b = 0;
  const A derivative = L::push_with_derivative(a, b, param, x);
  return {L::finish(a, b), derivative};
}

template <class A>
std::pair<A, A> continuous_bernoulli(A logit, A x) {
  return of_one<ContinuousBernoulli>(logit, x);
}

// By y/tanh y in long double, of which logits of 1e-6 leave 13 digits.
TYPED_TEST(FormulaTest, ContinuousBernoulliAgreesWithItsDefinition) {
  using A = TypeParam;
  using R = long double;
  for (const double size : {1e-6, 0.01, 0.2, 0.24, 0.26, 0.7, 0.99, 1.01, 3.0, 30.0, 1e4}) {
    for (const double x : {0.0, 0.3, 0.5, 1.0}) {
      for (const int sign : {-1, 1}) {
        const A logit = A(sign * size);
        const R m = std::abs(R(logit)), c = sign > 0 ? 1 - R(A(x)) : R(A(x));
        const R log_f = std::log(-std::expm1(-m) / m), h = 1 / m - 1 / std::expm1(m);
        const auto [density, derivative] = continuous_bernoulli(logit, A(x));
        EXPECT_NEAR(double(density), double(-(c * m + log_f)),
                    this->kError * double(c * m - log_f + 1))
            << logit << " " << x;
        EXPECT_NEAR(double(derivative), double(sign * (h - c)),
                    4 * this->kError * double(h + c) + 1e-13)
            << logit << " " << x;
      }
    }
  }
}

TYPED_TEST(FormulaTest, ContinuousBernoulliLimits) {
  using A = TypeParam;
  const A inf = infinity<A>(), nan = quiet_nan<A>();
  for (const A zero : {A(0), -A(0)}) {  // uniform
    EXPECT_EQ(continuous_bernoulli(zero, A(0.25)), std::pair(A(0), A(-0.25)));
  }
  EXPECT_EQ(continuous_bernoulli(inf, A(1)), std::pair(inf, A(0)));
  EXPECT_EQ(continuous_bernoulli(-inf, A(0)), std::pair(inf, A(0)));
  EXPECT_EQ(continuous_bernoulli(inf, A(0.75)), std::pair(-inf, A(-0.25)));
  EXPECT_EQ(continuous_bernoulli(-inf, A(0.25)), std::pair(-inf, A(0.25)));
  for (const auto& [logit, x] :
       {std::pair(nan, A(0.5)), std::pair(A(1), nan), std::pair(inf, nan)}) {
    const auto [density, derivative] = continuous_bernoulli(logit, x);
    EXPECT_TRUE(std::isnan(density)) << logit << " " << x;
    EXPECT_TRUE(std::isnan(derivative)) << logit << " " << x;
  }
}

// --- Bernoulli, by probabilities --------------------------------------------------------------

template <class A>
std::pair<A, A> of_probability(A p, A x) {
  return of_one<BernoulliProbabilities>(p, x);
}

TYPED_TEST(FormulaTest, BernoulliProbabilitiesAgreeWithTheirDefinition) {
  using A = TypeParam;
  for (const double given : {1e-30, 1e-7, 0.1, 0.5, 0.7, 1 - 1e-6}) {
    for (const double x : {0.0, 0.3, 0.5, 1.0}) {
      const double p = A(given), v = A(x);
      const double one = v * std::log(p), zero = (1 - v) * std::log1p(-p);
      const auto [density, derivative] = of_probability(A(p), A(v));
      EXPECT_NEAR(double(density), one + zero, this->kError * -(one + zero)) << p << " " << x;
      const double up = v / p, down = (1 - v) / (1 - p);
      EXPECT_NEAR(double(derivative), up - down, this->kError * (up + down)) << p << " " << x;
    }
  }
}

TYPED_TEST(FormulaTest, BernoulliProbabilitiesLimits) {
  using A = TypeParam;
  const A inf = infinity<A>(), nan = quiet_nan<A>(), half = A(0.5);
  for (const A zero : {A(0), -A(0)}) {
    EXPECT_EQ(of_probability(zero, A(0)), std::pair(A(0), A(-1)));
    EXPECT_EQ(of_probability(zero, A(1)).first, -inf);
    EXPECT_EQ(of_probability(zero, half).first, -inf);
  }
  EXPECT_EQ(of_probability(A(1), A(1)), std::pair(A(0), A(1)));
  EXPECT_EQ(of_probability(A(1), A(0)), std::pair(-inf, -inf));
  for (const A outside : {nan, -half, A(1.5), inf, -inf}) {
    for (const A x : {A(0), half, A(1)}) {
      const auto [density, derivative] = of_probability(outside, x);
      EXPECT_TRUE(std::isnan(density)) << outside << " " << x;
      EXPECT_TRUE(std::isnan(derivative)) << outside << " " << x;
    }
  }
  EXPECT_TRUE(std::isnan(of_probability(half, nan).first));
}

// --- of a mean and a scale --------------------------------------------------------------------

template <class L, class A>
struct Element {
  A density, d_mean, d_scale;

  Element(A mean, A scale, A x) {
    A a = 0, b = 0;
    L::template push<ScaleKind::kFull>(a, b, mean, scale, x);
    density = L::finish(a, b) + L::template data_term<ScaleKind::kFull>(scale, x);
    L::template derivative<ScaleKind::kFull>(mean, scale, x, d_mean, d_scale);
  }
};

TYPED_TEST(FormulaTest, LaplaceAgreesWithItsDefinition) {
  using A = TypeParam;
  for (const double m : {-2.0, 0.1, 0.9}) {
    for (const double s : {0.01, 0.7, 3.0}) {
      for (const double x : {0.0, 0.4, 1.0}) {
        const Element<Laplace, A> e{A(m), A(s), A(x)};
        const double scale = double(A(s)), d = double(A(x)) - double(A(m)), u = std::abs(d) / scale;
        EXPECT_NEAR(double(e.density), -u - std::log(scale),
                    this->kError * (u + std::abs(std::log(scale))));
        EXPECT_NEAR(double(e.d_mean), (d > 0 ? 1 : -1) / scale, this->kError / scale);
        EXPECT_NEAR(double(e.d_scale), (u - 1) / scale, this->kError * (u + 1) / scale);
      }
    }
  }
  EXPECT_DOUBLE_EQ(Laplace::kConstant, -std::log(2.0));
}

TYPED_TEST(FormulaTest, LaplaceLimits) {
  using A = TypeParam;
  const A inf = infinity<A>(), nan = quiet_nan<A>();
  const auto of = [](A mean, A scale, A x) {
    const Element<Laplace, A> e{mean, scale, x};
    return std::array<A, 3>{e.density, e.d_mean, e.d_scale};
  };
  EXPECT_EQ(of(A(0.5), A(1), A(0.5)), (std::array<A, 3>{A(0), A(0), A(-1)}));
  EXPECT_EQ(of(inf, A(1), A(0)), (std::array<A, 3>{-inf, A(-1), inf}));
  EXPECT_EQ(of(-inf, A(1), A(0)), (std::array<A, 3>{-inf, A(1), inf}));
  EXPECT_EQ(of(A(0), inf, A(1)), (std::array<A, 3>{-inf, A(0), A(0)}));
  for (const auto& [mean, scale, x] : {std::array{nan, A(1), A(0)}, std::array{A(0), nan, A(0)},
                                       std::array{A(0), A(1), nan}, std::array{inf, A(1), inf}}) {
    for (const A value : of(mean, scale, x)) EXPECT_NE(value, value) << mean << scale << x;
  }
  // Of a scale that is none.
  for (const A scale : {A(-1), -A(0)}) EXPECT_TRUE(std::isnan(of(A(1), scale, A(0))[0])) << scale;
}

TYPED_TEST(FormulaTest, DiscretisedLogisticAgreesWithItsDefinition) {
  using A = TypeParam;
  using E = Element<DiscretisedLogistic, A>;
  const auto cdf = [](double v) { return 1 / (1 + std::exp(-v)); };
  for (const double m : {-0.2, 0.3, 0.5}) {
    for (const double s : {0.004, 0.1, 2.0}) {
      double total = 0, mean_slope = 0;
      for (int level = 0; level < 256; ++level) {
        const A x = A(level) / A(255);
        const double mean = double(A(m)), scale = double(A(s)), u = double(x) - mean;
        const double low = level == 0 ? 0 : cdf((u - 0.5 / 255) / scale);
        const double high = level == 255 ? 1 : cdf((u + 0.5 / 255) / scale);
        const E e{A(m), A(s), x};
        const double p = std::exp(double(e.density));
        total += p;
        mean_slope += p * double(e.d_mean);
        if (high - low < 1e-3) continue;  // where this definition has lost what it subtracts
        const double terms = 1 + (std::abs(u) + 1.0 / 255) / scale;
        EXPECT_NEAR(double(e.density), std::log(high - low), this->kError * terms + 1e-12);
      }
      EXPECT_NEAR(total, 1, 10 * this->kError);
      EXPECT_NEAR(mean_slope * s, 0, 10 * this->kError);  // of Σ p = 1
    }
  }
}

// Far from the mean and for scales beyond reason every value is a number, and the right one.
TYPED_TEST(FormulaTest, DiscretisedLogisticLimits) {
  using A = TypeParam;
  using E = Element<DiscretisedLogistic, A>;
  const A inf = infinity<A>(), nan = quiet_nan<A>(), middle = A(128) / A(255);
  EXPECT_EQ((E{inf, A(1), A(1)}.density), A(0));
  EXPECT_EQ((E{-inf, A(1), A(0)}.density), A(0));
  EXPECT_EQ((E{inf, A(1), A(0)}.density), -inf);
  EXPECT_EQ((E{inf, A(1), middle}.density), -inf);
  EXPECT_EQ((E{-inf, A(1e-30), middle}.density), -inf);
  EXPECT_EQ((E{middle, A(1e-38), middle}.density), A(0));
  EXPECT_EQ((E{middle, inf, middle}.density), -inf);
  EXPECT_NEAR(double(E{middle, inf, A(0)}.density), -std::log(2.0), this->kError);
  // Two bins away: −(1.5/255)/s, while the bin itself holds all but e^−(1/255)/s.
  EXPECT_NEAR(double(E{middle, A(1e-4), A(130) / A(255)}.density), -1.5 / 255 / 1e-4,
              60 * this->kError);
  for (const A m : {A(0), middle, A(1), A(2), inf, -inf}) {
    for (const A s : {A(1e-38), A(1e-20), A(1e-4), A(1), A(1e30)}) {
      for (const A x : {A(0), middle, A(1)}) {
        const E e{m, s, x};
        EXPECT_LE(e.density, A(0)) << m << " " << s << " " << x;
        EXPECT_EQ(e.d_mean, e.d_mean) << m << " " << s << " " << x;
        EXPECT_EQ(e.d_scale, e.d_scale) << m << " " << s << " " << x;
      }
    }
  }
  for (const E e : {E{nan, A(1), A(0)}, E{A(0), nan, middle}, E{A(0), A(1), nan},
                    E{A(0), A(-1), A(0)}, E{A(1), A(-1e-3), middle}, E{A(0), -inf, A(1)}}) {
    EXPECT_NE(e.density, e.density);
    EXPECT_NE(e.d_mean, e.d_mean);
    EXPECT_NE(e.d_scale, e.d_scale);
  }
}

TYPED_TEST(FormulaTest, NegativeBinomialAgreesWithItsDefinition) {
  using A = TypeParam;
  for (const double m : {0.02, 1.0, 30.0}) {
    for (const double t : {0.001, 0.5, 3.9, 4.1, 9.9, 10.1, 1000.0, 1e6}) {
      for (const int x : {0, 1, 2, 3, 5, 17, 200}) {
        const double mean = double(A(m)), theta = double(A(t));
        // Γ(x + t)/Γ(t) = t (t + 1) … (t + x − 1)
        long double log_gamma = 0, digamma = 0, log_factorial = 0;
        for (int i = 0; i < x; ++i) {
          log_gamma += std::log(static_cast<long double>(theta) + i);
          digamma += 1 / (static_cast<long double>(theta) + i);
          log_factorial += std::log(static_cast<long double>(1 + i));
        }
        const long double odds = std::log1p(static_cast<long double>(mean) / theta);
        const double pull = (mean - x) / (theta + mean);
        const long double power =
            x == 0 ? 0 : -x * std::log1p(static_cast<long double>(theta) / mean);
        const double value = double(log_gamma - log_factorial - theta * odds + power);
        // Not of the terms above, which cancel.
        const double terms = 5 - value + std::abs(std::log(theta)) + std::log1p(x + theta);
        const Element<NegativeBinomial, A> e{A(m), A(t), A(x)};
        EXPECT_NEAR(double(e.density), value, this->kError * terms) << m << " " << t << " " << x;
        const double rest = theta / (theta + mean);
        EXPECT_NEAR(double(e.d_mean), (x / mean - 1) * rest, this->kError * (x / mean + 1) * rest);
        EXPECT_NEAR(double(e.d_scale), double(digamma - odds + pull),
                    this->kError * double(digamma + odds + (x + mean) / (theta + mean)))
            << m << " " << t << " " << x;
      }
    }
  }
}

// Counts to 1e6, where the formula's own terms are of 1e7: against it in long double, from which 11
// digits are left.
TYPED_TEST(FormulaTest, NegativeBinomialOfLargeCounts) {
  using A = TypeParam;
  using R = long double;
  for (const double m : {1e-6, 0.3, 40.0, 3e4, 1e6}) {
    for (const double t : {1e-3, 0.2, 0.999, 1.001, 3.0, 10.0, 500.0, 1e6}) {
      for (const double part : {0.0, 0.5, 0.74, 0.76, 0.99, 1.01, 1.3, 1.4, 3.0}) {
        const R x = std::round(std::min(part * m, 1e6)), mean = R(A(m)), theta = R(A(t));
        const R value = std::lgamma(x + theta) - std::lgamma(theta) - std::lgamma(x + 1) -
                        theta * std::log1p(mean / theta) - x * std::log1p(theta / mean);
        const double allowed = this->kError * (20 - 2 * double(value)) + 2e-11;
        const Element<NegativeBinomial, A> e{A(m), A(t), A(x)};
        EXPECT_NEAR(double(e.density), double(value), allowed) << m << " " << t << " " << x;
        A a = 0, b = 0;
        NegativeBinomial::push<ScaleKind::kShared>(a, b, A(m), A(t), A(x));
        const A shared = a + NegativeBinomial::data_term<ScaleKind::kShared>(A(t), A(x));
        EXPECT_NEAR(double(shared), double(value), allowed) << m << " " << t << " " << x;
        const R rest = theta / (theta + mean);
        EXPECT_NEAR(double(e.d_mean), double((x - mean) / mean * rest),
                    this->kError * double(std::abs(x - mean) / mean * rest));
      }
    }
  }
}

// To counts of 1e6, and to rates that are much smaller or larger than those.
TYPED_TEST(FormulaTest, PoissonAgreesWithItsDefinition) {
  using A = TypeParam;
  using R = long double;
  for (const double r : {1e-37, 1e-15, 0.02, 1.0, 30.0, 1e6, 1e15, 1e37}) {
    for (const double part : {0.0, 0.5, 0.74, 0.76, 0.99, 1.01, 1.3, 1.4, 3.0, 1e20}) {
      const R x = std::round(std::min(part * r, 1e6)), rate = R(A(r));
      const R power = x == 0 ? R(0) : x * std::log(rate);
      const double value = double(power - rate - std::lgamma(x + 1));
      const double allowed = this->kError * (20 - 2 * value) + 2e-11;
      A a = 0, b = 0;
      const A derivative = Poisson::push_with_derivative(a, b, A(r), A(x));
      const A density = Poisson::finish(a, b) + Poisson::data_term<ScaleKind::kNone>(A(1), A(x));
      EXPECT_NEAR(double(density), value, allowed) << r << " " << double(x);
      EXPECT_NEAR(double(derivative), double((x - rate) / rate),
                  this->kError * double(std::abs(x - rate) / rate));
    }
  }
}

TYPED_TEST(FormulaTest, PoissonLimits) {
  using A = TypeParam;
  const A inf = infinity<A>(), nan = quiet_nan<A>();
  const auto of = [](A rate, A x) {
    A a = 0, b = 0;
    const A derivative = Poisson::push_with_derivative(a, b, rate, x);
    const A density = Poisson::finish(a, b) + Poisson::data_term<ScaleKind::kNone>(A(1), x);
    return std::pair(density, derivative);
  };
  EXPECT_EQ(of(A(0), A(0)), std::pair(A(0), A(-1)));
  EXPECT_EQ(of(A(7), A(0)), std::pair(A(-7), A(-1)));
  EXPECT_EQ(of(A(0), A(3)), std::pair(-inf, inf));
  EXPECT_EQ(of(inf, A(3)), std::pair(-inf, A(-1)));
  for (const auto& [rate, x] : {std::pair(nan, A(2)), std::pair(A(1), nan), std::pair(A(-1), A(0)),
                                std::pair(A(-1e-9), A(2)), std::pair(-inf, A(2))}) {
    const auto [density, derivative] = of(rate, x);
    EXPECT_NE(density, density) << rate << " " << x;
    EXPECT_NE(derivative, derivative) << rate << " " << x;
  }
}

TYPED_TEST(FormulaTest, NegativeBinomialLimits) {
  using A = TypeParam;
  using E = Element<NegativeBinomial, A>;
  const A inf = infinity<A>(), nan = quiet_nan<A>();
  EXPECT_EQ((E{A(0), A(2), A(0)}.density), A(0));
  EXPECT_EQ((E{A(0), A(2), A(0)}.d_mean), A(-1));
  EXPECT_EQ((E{A(0), A(2), A(3)}.density), -inf);
  EXPECT_EQ((E{inf, A(2), A(3)}.density), -inf);
  for (const A t : {A(1e12), A(1e30), inf}) {  // a Poisson
    EXPECT_NEAR(double(E{A(3), t, A(5)}.density), 5 * std::log(3.0) - 3 - std::log(120.0),
                20 * this->kError + 1e-10);
    EXPECT_NEAR(double(E{A(3), t, A(5)}.d_mean), 5.0 / 3 - 1, this->kError * 3 + 1e-10);
    EXPECT_NEAR(double(E{A(3), t, A(5)}.d_scale), 0, 1e-11);
  }
  EXPECT_EQ(log_factorial_rest(A(0)), A(0));
  EXPECT_NEAR(double(log_factorial_rest(A(1))), 1, this->kError);
  for (const A m : {A(0), A(1e-30), A(1), A(1e30), inf}) {
    for (const A t : {A(1e-30), A(1e-4), A(1), A(1e30), inf}) {
      for (const A x : {A(0), A(1), A(1e6)}) {
        const E e{m, t, x};
        EXPECT_LE(e.density, A(0)) << m << " " << t << " " << x;
        EXPECT_EQ(e.d_mean, e.d_mean) << m << " " << t << " " << x;
        EXPECT_EQ(e.d_scale, e.d_scale) << m << " " << t << " " << x;
      }
    }
  }
  for (const E e : {E{nan, A(1), A(0)}, E{A(1), nan, A(2)}, E{A(1), A(1), nan},
                    E{A(-2), A(1), A(0)}, E{A(-1e-30), A(1), A(3)}, E{-inf, A(2), A(3)}}) {
    EXPECT_NE(e.density, e.density);
    EXPECT_NE(e.d_mean, e.d_mean);
    EXPECT_NE(e.d_scale, e.d_scale);
  }
  for (const E e : {E{A(1), A(-2), A(0)}, E{A(3), A(-1), A(2)}, E{A(3), -inf, A(2)}}) {
    EXPECT_NE(e.density, e.density);
    EXPECT_NE(e.d_scale, e.d_scale);
  }
  // A Poisson where the dispersion is large beside means and counts, not from some size on.
  for (const auto& [m, t, x] : {std::tuple{1e22, 1e25, 5.0}, {0.5, 1e27, 1e12}}) {
    using R = long double;
    const R mean = R(A(m)), theta = R(A(t)), u = (x - mean) / (theta + mean);
    // x >= 1e12 or a mean of 1e22: all but the deviance is lost beside it.
    const R w = theta * (x - mean) / (x * (theta + mean));
    const R deviance = theta * (u - std::log1p(u)) + R(x) * (-w - std::log1p(-w));
    EXPECT_NEAR(double(E{A(m), A(t), A(x)}.density), -double(deviance), 1e-6 * double(deviance));
  }
}

}  // namespace
}  // namespace dvae::test
