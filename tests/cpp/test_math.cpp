// The float functions of core/math.h against libm in double, in units in the last place, over
// dense sweeps of all bit patterns. DVAE_TEST_STRIDE=1 tests every float there is.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/math.h"
#include "math_table.h"

namespace dvae::test {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kLargest = 0x1.fffffep127;

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The distance of neighbouring floats at `exact`.
double ulp(double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  return std::ldexp(1.0, std::max(exponent, -125) - 24);
}

// Error in ulp; an overflow to inf is right from where rounding to nearest overflows on.
double error_of(float got, double exact) {
  if (std::isnan(exact)) return std::isnan(got) ? 0 : HUGE_VAL;
  if (std::isinf(got)) return std::abs(exact) > kLargest && got * exact > 0 ? 0 : HUGE_VAL;
  if (std::isinf(exact)) return HUGE_VAL;
  return std::abs(static_cast<double>(got) - exact) / ulp(exact);
}

uint64_t stride() {
  const char* const given = std::getenv("DVAE_TEST_STRIDE");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : 4099;
}

// Calls f(chunk of words, n) over every stride-th of all 32-bit words.
template <class F>
void sweep(F f) {
  constexpr size_t kChunk = 4096;
  std::vector<uint32_t> words;
  for (uint64_t b = 0; b < uint64_t{1} << 32; b += stride()) {
    words.push_back(static_cast<uint32_t>(b));
    if (words.size() == kChunk) {
      f(words);
      words.clear();
    }
  }
  f(words);
}

class MathTest : public testing::TestWithParam<cpu::Isa> {
 protected:
  const MathTable& table() const { return math_table(GetParam()); }

  // The worst error over the sweep, of the floats for which `domain` holds.
  template <class Exact, class Domain>
  void expect_within(double limit, Unary f, Exact exact, Domain domain) const {
    double worst = 0;
    float at = 0, result = 0;
    int64_t count = 0;
    std::vector<float> in, out;
    sweep([&](const std::vector<uint32_t>& words) {
      in.clear();
      for (const uint32_t w : words) {
        if (domain(float_of(w))) in.push_back(float_of(w));
      }
      out.resize(in.size());
      f(in.data(), out.data(), static_cast<int64_t>(in.size()));
      count += static_cast<int64_t>(in.size());
      for (size_t i = 0; i < in.size(); ++i) {
        const double error = error_of(out[i], exact(static_cast<double>(in[i])));
        if (error > worst) worst = error, at = in[i], result = out[i];
      }
    });
    EXPECT_GT(count, 0);
    EXPECT_LE(worst, limit) << "at " << std::hexfloat << at << " (" << std::defaultfloat << at
                            << "), where it is " << result;
    RecordProperty("worst_ulp", std::to_string(worst));
  }

  float call(Unary f, float x) const {
    float out;
    f(&x, &out, 1);
    return out;
  }
};

bool any(float) { return true; }
// Below, results are not normal floats: 0.
bool is_normal_exp(float x) { return !(x < -87.33654f); }

TEST_P(MathTest, Exp) {
  expect_within(2, table().exp, [](double x) { return std::exp(x); }, any);
  EXPECT_EQ(call(table().exp, 0.0f), 1.0f);
  EXPECT_EQ(call(table().exp, -0.0f), 1.0f);
  EXPECT_EQ(call(table().exp, HUGE_VALF), HUGE_VALF);
  EXPECT_EQ(call(table().exp, -HUGE_VALF), 0.0f);
  EXPECT_EQ(call(table().exp, 88.8f), HUGE_VALF);
  EXPECT_EQ(call(table().exp, -103.9f), 0x1p-149f);
}

TEST_P(MathTest, ExpNonpositive) {
  expect_within(
      2, table().exp_nonpositive, [](double x) { return std::exp(x); },
      [](float x) { return !(x > 0) && is_normal_exp(x); });
  EXPECT_EQ(call(table().exp_nonpositive, 0.0f), 1.0f);
  EXPECT_EQ(call(table().exp_nonpositive, -0.0f), 1.0f);
  EXPECT_EQ(call(table().exp_nonpositive, -HUGE_VALF), 0.0f);
  EXPECT_EQ(call(table().exp_nonpositive, -1e30f), 0.0f);
  EXPECT_EQ(call(table().exp_nonpositive, -88.0f), 0.0f);
  EXPECT_TRUE(std::isnan(call(table().exp_nonpositive, std::nanf(""))));
  // Every float about the cut: a normal result, or 0, and nothing between.
  for (float x = -87.3f; x > -87.4f; x = std::nextafter(x, -100.0f)) {
    const float y = call(table().exp_nonpositive, x);
    ASSERT_TRUE(y == 0 || y >= 0x1p-126f) << x;
    ASSERT_TRUE(y > 0 || std::exp(static_cast<double>(x)) < 0x1.0001p-126) << x;
  }
}

TEST_P(MathTest, Log) {
  expect_within(2, table().log, [](double x) { return std::log(x); }, any);
  EXPECT_EQ(call(table().log, 1.0f), 0.0f);
  EXPECT_EQ(call(table().log, 0.0f), -HUGE_VALF);
  EXPECT_EQ(call(table().log, -0.0f), -HUGE_VALF);
  EXPECT_EQ(call(table().log, HUGE_VALF), HUGE_VALF);
  EXPECT_TRUE(std::isnan(call(table().log, -HUGE_VALF)));
  EXPECT_TRUE(std::isnan(call(table().log, -0x1p-149f)));
  EXPECT_LE(error_of(call(table().log, 0x1p-149f), std::log(0x1p-149)), 2);
}

TEST_P(MathTest, Log1p) {
  expect_within(2, table().log1p, [](double x) { return std::log1p(x); }, any);
  EXPECT_EQ(call(table().log1p, 0.0f), 0.0f);
  EXPECT_EQ(call(table().log1p, -1.0f), -HUGE_VALF);
  EXPECT_EQ(call(table().log1p, HUGE_VALF), HUGE_VALF);
  EXPECT_TRUE(std::isnan(call(table().log1p, -1.5f)));
  EXPECT_EQ(call(table().log1p, 0x1p-149f), 0x1p-149f);
  EXPECT_EQ(call(table().log1p, 0x1p-60f), 0x1p-60f);
}

TEST_P(MathTest, Softplus) {
  expect_within(
      2, table().softplus,
      [](double x) { return (x > 0 ? x : 0.0) + std::log1p(std::exp(-std::abs(x))); },
      is_normal_exp);
  EXPECT_EQ(call(table().softplus, -HUGE_VALF), 0.0f);
  EXPECT_EQ(call(table().softplus, HUGE_VALF), HUGE_VALF);
}

TEST_P(MathTest, Sigmoid) {
  expect_within(3, table().sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }, is_normal_exp);
  EXPECT_EQ(call(table().sigmoid, 0.0f), 0.5f);
  EXPECT_EQ(call(table().sigmoid, -HUGE_VALF), 0.0f);
  EXPECT_EQ(call(table().sigmoid, HUGE_VALF), 1.0f);
}

TEST_P(MathTest, Log1pUnit) {
  const auto unit = [](float e) { return !(e < 0 || e > 1); };
  expect_within(2, table().log1p_unit, [](double e) { return std::log1p(e); }, unit);
  EXPECT_EQ(call(table().log1p_unit, 0.0f), 0.0f);
  EXPECT_EQ(call(table().log1p_unit, 0x1p-126f), 0x1p-126f);
}

TEST_P(MathTest, OneMinusExp) {
  const auto nonnegative = [](float y) { return !(y < 0); };
  expect_within(3, table().one_minus_exp, [](double y) { return -std::expm1(-y); }, nonnegative);
  EXPECT_EQ(call(table().one_minus_exp, 0.0f), 0.0f);
  EXPECT_EQ(call(table().one_minus_exp, HUGE_VALF), 1.0f);
}

TEST_P(MathTest, Tanh) {
  expect_within(4, table().tanh, [](double x) { return std::tanh(x); }, any);
  EXPECT_EQ(call(table().tanh, HUGE_VALF), 1.0f);
  EXPECT_EQ(call(table().tanh, -HUGE_VALF), -1.0f);
  EXPECT_EQ(call(table().tanh, 0.0f), 0.0f);
}

TEST_P(MathTest, Sqrt) {
  expect_within(0.5, table().sqrt, [](double x) { return std::sqrt(x); }, any);
}

TEST_P(MathTest, Abs) {
  expect_within(0, table().abs, [](double x) { return std::abs(x); }, any);
  EXPECT_FALSE(std::signbit(call(table().abs, -0.0f)));
  EXPECT_FALSE(std::signbit(call(table().abs, -HUGE_VALF)));
}

// sin of 2π v/2³². Folded to a quarter turn in integers: libm's argument must not be rounded near
// a zero of the sine.
double sine(uint32_t v) {
  int64_t s = static_cast<int32_t>(v);
  if (s > 1 << 30) s = (int64_t{1} << 31) - s;
  if (s < -(1 << 30)) s = -(int64_t{1} << 31) - s;
  return std::sin(static_cast<double>(s) * (kPi * 0x1p-31));
}

TEST_P(MathTest, SincosTurn) {
  double worst = 0;
  uint32_t at = 0;
  const auto check = [&](const std::vector<uint32_t>& v) {
    std::vector<float> s(v.size()), c(v.size());
    table().sincos_turn(v.data(), s.data(), c.data(), static_cast<int64_t>(v.size()));
    for (size_t i = 0; i < v.size(); ++i) {
      const double error =
          std::max(error_of(s[i], sine(v[i])), error_of(c[i], sine(v[i] + (1u << 30))));
      if (error > worst) worst = error, at = v[i];
    }
  };
  sweep(check);
  // About every eighth of a turn, where quadrants meet and where one result is 0.
  std::vector<uint32_t> edges;
  for (uint32_t eighth = 0; eighth < 8; ++eighth) {
    for (uint32_t i = 0; i < 64; ++i) edges.push_back((eighth << 29) + i - 32);
  }
  check(edges);
  EXPECT_LE(worst, 3) << "at " << at;
  const std::vector<uint32_t> quarters = {0, 1u << 30, 1u << 31, 3u << 30};
  const float sines[] = {0, 1, 0, -1}, cosines[] = {1, 0, -1, 0};
  std::vector<float> s(4), c(4);
  table().sincos_turn(quarters.data(), s.data(), c.data(), 4);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(s[i], sines[i]);
    EXPECT_EQ(c[i], cosines[i]);
  }
}

TEST_P(MathTest, LogUniform) {
  double worst = 0;
  uint32_t at = 0;
  const auto check = [&](const std::vector<uint32_t>& w) {
    std::vector<float> out(w.size());
    table().log_uniform(w.data(), out.data(), static_cast<int64_t>(w.size()));
    for (size_t i = 0; i < w.size(); ++i) {
      // Through the complement, so that libm sees the distance to 1 in full.
      const double exact =
          w[i] > 1u << 31 ? std::log1p(-(~w[i] + 0.5) * 0x1p-32) : std::log((w[i] + 0.5) * 0x1p-32);
      ASSERT_LT(out[i], 0) << w[i];
      const double error = error_of(out[i], exact);
      if (error > worst) worst = error, at = w[i];
    }
  };
  sweep(check);
  std::vector<uint32_t> edges;
  for (uint32_t i = 0; i < 4096; ++i) {
    for (const uint32_t edge : {0u, 0u - 4096, 1u << 31, 0xB504F333u, 0x5A827999u}) {
      edges.push_back(edge + i);
      edges.push_back(edge - i);
    }
  }
  check(edges);
  EXPECT_LE(worst, 3.5) << "at " << at;
}

INSTANTIATE_TEST_SUITE_P(Levels, MathTest, testing::ValuesIn(cpu::vector_isas()),
                         [](const auto& info) { return name_of(info.param); });

TEST(Math, DoubleIsLibm) {
  for (const double x : {-800.0, -3.0, -1e-300, 0.0, 1e-9, 0.5, 1.0, 700.0}) {
    EXPECT_EQ(dvae::exp(x), std::exp(x));
    EXPECT_EQ(dvae::exp_nonpositive(x), std::exp(x));
    EXPECT_EQ(dvae::abs(x), std::abs(x));
    EXPECT_EQ(dvae::log(std::abs(x)), std::log(std::abs(x)));
    EXPECT_EQ(dvae::log1p(std::abs(x)), std::log1p(std::abs(x)));
    const double sigmoid = 1 / (1 + std::exp(-x));
    EXPECT_NEAR(dvae::sigmoid(x), sigmoid, 4e-16 * sigmoid);
    EXPECT_NEAR(dvae::softplus(x), std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))), 1e-13);
  }
}

TEST(Math, Constants) {
  EXPECT_EQ(infinity<float>(), HUGE_VALF);
  EXPECT_EQ(infinity<double>(), HUGE_VAL);
  EXPECT_TRUE(std::isnan(quiet_nan<float>()));
  EXPECT_TRUE(std::isnan(quiet_nan<double>()));
}

}  // namespace
}  // namespace dvae::test
