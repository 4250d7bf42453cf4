// The formulas of device code (core/device_math.h) on a model of the chip that makes the largest
// errors its maker allows: they keep the tolerances of the formulas they stand for.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "chip_model.h"
#include "core/likelihoods.h"
#include "core/noise.h"

namespace dvae::test {
namespace {

const float kInf = HUGE_VALF, kNaN = NAN;

struct Terms {
  float density, derivative;
};

template <bool kCoarse>
Terms bernoulli(float logit, float x) {
  float a = 0, b = 0;
  const Bernoulli::ChipTerms<ChipModel, kCoarse> terms(logit, x);
  terms.push(a, b);
  return {Bernoulli::finish(a, b), terms.derivative()};
}

// −(c |l| + log1p(e^−|l|)) and x − σ(l)
void exact(double l, double x, double& density, double& derivative) {
  const double c = l > 0 ? 1 - x : x, e = std::exp(-std::abs(l));
  density = -(c * std::abs(l) + std::log1p(e));
  derivative = l > 0 ? (x - 1) + e / (1 + e) : x - e / (1 + e);
}

template <bool kCoarse>
void expect_bernoulli(double most, double tolerance) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(-12, std::log2(most)), unit(0, 1);
  for (int i = 0; i < 200000; ++i) {
    const float l = static_cast<float>(std::exp2(exponent(random)) * (i % 2 == 0 ? 1 : -1));
    const float x = i % 3 == 0 ? 0.0f : i % 3 == 1 ? 1.0f : static_cast<float>(unit(random));
    ChipModel::set_errors(i % ChipModel::kWays);
    const Terms got = bernoulli<kCoarse>(l, x);
    double density, derivative;
    exact(l, x, density, derivative);
    ASSERT_NEAR(got.density, density, tolerance * std::abs(density) + 1e-37) << l << " " << x;
    // Against the terms of x − σ(l); of the fine one, where x is 0 or 1, nothing cancels.
    const double terms =
        kCoarse || (x != 0 && x != 1) ? x + std::abs(x - derivative) : std::abs(derivative);
    ASSERT_NEAR(got.derivative, derivative, tolerance * terms + 1e-37) << l << " " << x;
  }
}

TEST(DeviceMath, Bernoulli) {
  expect_bernoulli<false>(120, 1e-6);
  expect_bernoulli<true>(20.7, 2e-6);
  expect_bernoulli<true>(120, 4.5e-6);
}

// Rows as a kernel takes them: many elements to a logarithm, mostly sure and right.
TEST(DeviceMath, BernoulliRows) {
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal;
  for (int row = 0; row < 2000; ++row) {
    ChipModel::set_errors(row % ChipModel::kWays);
    const float spread = std::exp2(static_cast<float>(row % 9) - 3);
    float a = 0, b = 0;
    double total = 0;
    for (int i = 0; i < Bernoulli::kMaxPush; ++i) {
      const float l = spread * normal(random);
      const float x = (l > 0) != (i % 29 == 0) ? 1.0f : 0.0f;
      Bernoulli::ChipTerms<ChipModel, false>(l, x).push(a, b);
      double density, unused;
      exact(l, x, density, unused);
      total += density;
    }
    ASSERT_NEAR(Bernoulli::finish(a, b), total, 2e-6 * std::abs(total)) << row;
  }
}

template <bool kCoarse>
void expect_limits() {
  ChipModel::set_errors(0, 0);
  for (const float x : {0.0f, 1.0f, 0.25f}) {
    EXPECT_EQ(bernoulli<kCoarse>(kInf, x).density, x == 1 ? 0 : -kInf) << x;
    EXPECT_EQ(bernoulli<kCoarse>(-kInf, x).density, x == 0 ? 0 : -kInf) << x;
    EXPECT_EQ(bernoulli<kCoarse>(kInf, x).derivative, x - 1) << x;
    EXPECT_EQ(bernoulli<kCoarse>(-kInf, x).derivative, x) << x;
    for (const float l : {0.0f, -0.0f}) {
      EXPECT_NEAR(bernoulli<kCoarse>(l, x).density, -std::log(2.0), 1e-7) << l << " " << x;
      EXPECT_EQ(bernoulli<kCoarse>(l, x).derivative, x - 0.5f) << l << " " << x;
    }
    EXPECT_TRUE(std::isnan(bernoulli<kCoarse>(kNaN, x).density)) << x;
    EXPECT_TRUE(std::isnan(bernoulli<kCoarse>(kNaN, x).derivative)) << x;
    // As large as a finite logit can be.
    const float most = largest<float>();
    EXPECT_EQ(bernoulli<kCoarse>(most, x).density, -(1 - x) * most) << x;
    EXPECT_EQ(bernoulli<kCoarse>(-most, x).density, -x * most) << x;
  }
  for (const float l : {3.0f, -3.0f, 0.0f, kInf, -kInf, kNaN}) {
    EXPECT_TRUE(std::isnan(bernoulli<kCoarse>(l, kNaN).density)) << l;
    EXPECT_TRUE(std::isnan(bernoulli<kCoarse>(l, kNaN).derivative)) << l;
  }
  // One that is not finite leaves its sum not finite, whatever else is in it.
  float a = 0, b = 0;
  for (const float l : {2.0f, kNaN, 3.0f, kInf}) {
    Bernoulli::ChipTerms<ChipModel, kCoarse>(l, 1.0f).push(a, b);
  }
  EXPECT_TRUE(std::isnan(Bernoulli::finish(a, b)));
}

TEST(DeviceMath, BernoulliLimits) {
  expect_limits<false>();
  expect_limits<true>();
}

// e^−|x| over all that has a normal result.
TEST(DeviceMath, ExpMinusMagnitude) {
  for (int way = 0; way < 2; ++way) {
    ChipModel::set_errors(way);
    for (float x = 0; x < 87.3f; x += 0.000977f) {
      const double wanted = std::exp(-static_cast<double>(x));
      const float fine = exp_minus_magnitude<ChipModel, false>(-x);
      ASSERT_NEAR(fine, wanted, 5 * 0x1p-23 * wanted) << x;
      const float coarse = exp_minus_magnitude<ChipModel, true>(-x);
      ASSERT_NEAR(coarse, wanted, (x < 20.7f ? 2e-6 : 4.2e-6) * wanted) << x;
    }
  }
  EXPECT_EQ((exp_minus_magnitude<ChipModel, false>(-88.0f)), 0);
  EXPECT_EQ((exp_minus_magnitude<ChipModel, false>(-kInf)), 0);
  EXPECT_EQ((exp_minus_magnitude<ChipModel, true>(-kInf)), 0);
  EXPECT_TRUE(std::isnan(exp_minus_magnitude<ChipModel, false>(kNaN)));
  EXPECT_TRUE(std::isnan(exp_minus_magnitude<ChipModel, true>(kNaN)));
}

// Normals against their radius, by which the operators' tolerance of 2e-6 goes; and their squares,
// of which log_ratio is made, with some of it left for rounding in the sums.
void expect_normals(uint32_t w0, uint32_t w1) {
  const double pi = std::acos(-1.0);
  const double radius = std::sqrt(-2 * std::log((w0 + 0.5) * 0x1p-32));
  const double angle = 2 * pi * w1 * 0x1p-32;
  const double wanted[] = {radius * std::cos(angle), radius * std::sin(angle)};
  float n[2];
  box_muller<ChipModel>(w0, w1, n[0], n[1]);
  float here[2];
  normal_pair(w0, w1, here[0], here[1]);
  for (int i = 0; i < 2; ++i) {
    ASSERT_NEAR(n[i], wanted[i], 1e-6 * radius) << w0 << " " << w1;
    ASSERT_NEAR(double(n[i]) * n[i], wanted[i] * wanted[i], 1.3e-6 * radius * radius)
        << w0 << " " << w1;
    ASSERT_NEAR(n[i], here[i], 1.5e-6 * radius) << w0 << " " << w1;
  }
}

TEST(DeviceMath, BoxMuller) {
  std::mt19937 random(3);
  std::vector<uint32_t> words;
  for (const uint32_t at : {0u, 0x40000000u, 0x80000000u, 0xC0000000u}) {
    for (uint32_t i = 0; i < 64; ++i) words.insert(words.end(), {at + i, at - 1 - i});
    for (uint32_t bit = 1; bit != 0; bit <<= 1) words.insert(words.end(), {at + bit, at - bit});
  }
  for (int way = 0; way < ChipModel::kWays; ++way) {
    ChipModel::set_errors(way);
    for (const uint32_t w0 : words) {
      for (const uint32_t w1 : {words[random() % words.size()], words[random() % words.size()]}) {
        expect_normals(w0, w1);
        if (HasFatalFailure()) return;
      }
    }
    // Evenly over all there are, and over their distance to 0 and to 1 on a scale of powers.
    for (int i = 0; i < 8192; ++i) {
      const uint32_t w0 = static_cast<uint32_t>(random()), w1 = static_cast<uint32_t>(random());
      const uint32_t small = w0 >> random() % 32;
      for (const uint32_t w : {w0, small, ~small}) {
        expect_normals(w, w1);
        if (HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace dvae::test
