// The structs of csrc/core but likelihoods, one element at a time: latent terms, corruptions and
// the streaming logsumexp, at ordinary values and at their limits.
#include <cmath>
#include <tuple>
#include <vector>

#include "core/corruptions.h"
#include "core/latent.h"
#include "core/logsumexp.h"
#include "formula_test.h"

namespace dvae::test {
namespace {

TYPED_TEST_SUITE(FormulaTest, Types);

// --- latent terms -----------------------------------------------------------------------------

TYPED_TEST(FormulaTest, LatentRatioIsThatOfTheNormals) {
  using A = TypeParam;
  const double log_2pi = std::log(2 * std::acos(-1.0));
  for (const double mean : {-1.5, 0.2}) {
    for (const double log_var : {-2.0, 0.0, 1.0}) {
      for (const double noise : {-2.5, 0.0, 0.3}) {
        const double sigma = std::exp(0.5 * log_var), z = mean + sigma * noise;
        const double log_p = -0.5 * (z * z + log_2pi);
        const double log_q = -0.5 * (noise * noise + log_2pi + log_var);
        EXPECT_NEAR(double(DiagonalNormal::log_ratio(A(noise), A(z), A(log_var))), log_p - log_q,
                    10 * this->kError);
        EXPECT_NEAR(
            double(DiagonalNormal::log_ratio_at(A(z), A(mean), A(std::exp(-log_var)), A(log_var))),
            log_p - log_q, 10 * this->kError);
      }
    }
  }
}

// Central differences in double: the gradients are of the formulas.
TEST(Latent, GradientsAreThoseOfTheFormulas) {
  const double mean = 0.3, log_var = -0.7, noise = 1.1, gz = 0.4, gr = -0.6, h = 1e-6;
  const auto sampled = [&](double m, double v) {
    const double z = m + std::exp(0.5 * v) * noise;
    return gz * z + gr * DiagonalNormal::log_ratio(noise, z, v);
  };
  double d_mean = 1, d_log_var = 2;  // added to
  const double scaled = std::exp(0.5 * log_var) * noise;
  DiagonalNormal::accumulate_gradient(gz, gr, mean + scaled, scaled, d_mean, d_log_var);
  EXPECT_NEAR(d_mean - 1, (sampled(mean + h, log_var) - sampled(mean - h, log_var)) / (2 * h),
              1e-9);
  EXPECT_NEAR(d_log_var - 2, (sampled(mean, log_var + h) - sampled(mean, log_var - h)) / (2 * h),
              1e-9);

  const double z = -0.8;
  const auto at = [&](double zz, double m, double v) {
    return gr * DiagonalNormal::log_ratio_at(zz, m, std::exp(-v), v);
  };
  double at_mean = 1, at_log_var = 2;
  const double d_z =
      DiagonalNormal::log_ratio_at_gradient(gr, z, mean, std::exp(-log_var), at_mean, at_log_var);
  EXPECT_NEAR(d_z, (at(z + h, mean, log_var) - at(z - h, mean, log_var)) / (2 * h), 1e-9);
  EXPECT_NEAR(at_mean - 1, (at(z, mean + h, log_var) - at(z, mean - h, log_var)) / (2 * h), 1e-9);
  EXPECT_NEAR(at_log_var - 2, (at(z, mean, log_var + h) - at(z, mean, log_var - h)) / (2 * h),
              1e-9);
}

// --- corruptions ------------------------------------------------------------------------------

TYPED_TEST(FormulaTest, CorruptionsDrawByThreshold) {
  using A = TypeParam;
  const int32_t hit = 1000, one = 400;
  struct Row {
    int32_t u;
    A masked, noisy, flipped, passes, flip;
  };
  for (const Row& r : {Row{0, 0, 1, A(0.75), 0, -1}, Row{399, 0, 1, A(0.75), 0, -1},
                       Row{400, 0, 0, A(0.75), 0, -1}, Row{999, 0, 0, A(0.75), 0, -1},
                       Row{1000, A(0.25), A(0.25), A(0.25), 1, 1}}) {
    EXPECT_EQ(Masking::apply(A(0.25), r.u, hit, one), r.masked) << r.u;
    EXPECT_EQ(SaltAndPepper::apply(A(0.25), r.u, hit, one), r.noisy) << r.u;
    EXPECT_EQ(BitFlip::apply(A(0.25), r.u, hit, one), r.flipped) << r.u;
    EXPECT_EQ(Masking::derivative(A(3), r.u, hit), 3 * r.passes) << r.u;
    EXPECT_EQ(SaltAndPepper::derivative(A(3), r.u, hit), 3 * r.passes) << r.u;
    EXPECT_EQ(BitFlip::derivative(A(3), r.u, hit), 3 * r.flip) << r.u;
  }
  // The largest 24-bit uniform: rate 1 hits it, rate 0 does not hit the smallest.
  EXPECT_EQ(Masking::apply(A(0.25), (1 << 24) - 1, 1 << 24, 0), A(0));
  EXPECT_EQ(Masking::apply(A(0.25), 0, 0, 0), A(0.25));
  EXPECT_EQ(AdditiveGaussian::apply(A(0.5), A(-2), A(0.25)), A(0));
}

// --- logsumexp --------------------------------------------------------------------------------

LogSumExp pushed(const std::vector<double>& log_w) {
  LogSumExp s;
  for (const double w : log_w) s.push(w);
  return s;
}

void expect_state(const LogSumExp& s, const std::vector<double>& log_w) {
  double max = -HUGE_VAL, s1 = 0, s2 = 0, sum = 0;
  for (const double w : log_w) max = std::max(max, w);
  for (const double w : log_w) {
    s1 += std::exp(w - max);
    s2 += std::exp(2 * (w - max));
    sum += w;
  }
  EXPECT_EQ(s.max, max);
  EXPECT_NEAR(s.s1, s1, 1e-14 * s1);
  EXPECT_NEAR(s.s2, s2, 1e-14 * s2);
  EXPECT_NEAR(s.sum, sum, 1e-12 * std::abs(sum));
  EXPECT_EQ(s.count, static_cast<double>(log_w.size()));
}

const std::vector<double> kLogWeights = {-103.5, -90.25, -97.0, -90.25, -1050.0, -88.5, -120.0};

TEST(LogSumExp, PushIsTheSum) { expect_state(pushed(kLogWeights), kLogWeights); }

TEST(LogSumExp, MergeOfAnySplitIsTheSum) {
  for (size_t cut = 0; cut <= kLogWeights.size(); ++cut) {
    const auto at = kLogWeights.begin() + static_cast<std::ptrdiff_t>(cut);
    LogSumExp first = pushed({kLogWeights.begin(), at});
    const LogSumExp second = pushed({at, kLogWeights.end()});
    LogSumExp reversed = second;
    reversed.merge(first);
    first.merge(second);
    expect_state(first, kLogWeights);
    expect_state(reversed, kLogWeights);
  }
}

TEST(LogSumExp, NothingMergedIsNothing) {
  LogSumExp s;
  s.merge(LogSumExp{});
  EXPECT_EQ(s.max, -HUGE_VAL);
  EXPECT_EQ(s.s1, 0);
  EXPECT_EQ(s.s2, 0);
  EXPECT_EQ(s.sum, 0);
  EXPECT_EQ(s.count, 0);
}

TEST(LogSumExp, WeightsOfZero) {
  LogSumExp s = pushed({-HUGE_VAL, -HUGE_VAL});
  EXPECT_EQ(s.max, -HUGE_VAL);
  EXPECT_EQ(s.s1, 0);  // the bound, max + log(s1/count), is −inf
  EXPECT_EQ(s.s2, 0);
  EXPECT_EQ(s.sum, -HUGE_VAL);
  EXPECT_EQ(s.count, 2);
  s.push(-3);
  EXPECT_EQ(s.max, -3);
  EXPECT_EQ(s.s1, 1);
  EXPECT_EQ(s.s2, 1);
  EXPECT_EQ(s.count, 3);
  s.push(-HUGE_VAL);
  EXPECT_EQ(s.s1, 1);
}

TEST(LogSumExp, NaNStays) {
  const double nan = std::nan("");
  for (const std::vector<double>& log_w : {std::vector<double>{nan, -1, -2},
                                           {-1, nan, -2},
                                           {-1, -2, nan},
                                           {-HUGE_VAL, nan},
                                           {nan, -HUGE_VAL},
                                           {nan, nan}}) {
    LogSumExp s = pushed(log_w);
    EXPECT_TRUE(std::isnan(s.max + std::log(s.s1)));
    EXPECT_TRUE(std::isnan(s.s2));
    EXPECT_TRUE(std::isnan(s.sum));
    EXPECT_EQ(s.count, static_cast<double>(log_w.size()));
    LogSumExp other = pushed({-1, -2});
    other.merge(s);
    EXPECT_TRUE(std::isnan(other.max + std::log(other.s1)));
    s.merge(pushed({-1, -2}));
    EXPECT_TRUE(std::isnan(s.max + std::log(s.s1)));
  }
}

}  // namespace
}  // namespace dvae::test
