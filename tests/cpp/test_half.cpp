// bfloat16 and float16: all 65536 values there and back, and rounding against a slow reference.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "math_table.h"

namespace dvae::test {
namespace {

struct Format {
  int exponent_bits, mantissa_bits;
};
constexpr Format kHalf = {5, 10}, kBFloat16 = {8, 7};

// A 16-bit float's value, by the definition of IEEE 754.
double decode(uint32_t bits, Format f) {
  const int bias = (1 << (f.exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1);
  const int mantissa = static_cast<int>(bits) & ((1 << f.mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == (1 << f.exponent_bits) - 1) return mantissa != 0 ? std::nan("") : sign * HUGE_VAL;
  const double significand = std::ldexp(mantissa, -f.mantissa_bits) + (exponent > 0 ? 1 : 0);
  return sign * std::ldexp(significand, std::max(exponent, 1) - bias);
}

// The nearest of all values, ties to the even one, by search among the non-negative finite ones
// and the first beyond: 2^(largest exponent + 1), which stands for inf.
uint32_t encode(float x, Format f) {
  const double magnitude = std::abs(static_cast<double>(x));
  const uint32_t sign = std::signbit(x) ? 0x8000 : 0;
  const uint32_t inf = ((1u << f.exponent_bits) - 1) << f.mantissa_bits;
  const auto at = [&](uint32_t bits) {
    return bits < inf ? decode(bits, f) : std::ldexp(1.0, 1 << (f.exponent_bits - 1));
  };
  uint32_t low = 0, high = inf;  // the largest value <= magnitude lies in [low, high]
  while (low < high) {
    const uint32_t middle = (low + high + 1) / 2;
    if (at(middle) <= magnitude) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  if (low == inf) return sign | inf;
  const double below = magnitude - at(low), above = at(low + 1) - magnitude;
  const bool up = above < below || (above == below && low % 2 == 1);
  return sign | (up ? low + 1 : low);
}

class HalfTest : public testing::TestWithParam<cpu::Isa> {
 protected:
  const MathTable& table() const { return math_table(GetParam()); }
};

using Load = void (*)(const uint16_t*, float*, int64_t);
using Store = void (*)(const float*, uint16_t*, int64_t);

void check_all_values(Load load, Store store, Format format) {
  constexpr size_t n = 65536;
  std::vector<uint16_t> bits(n), back(n);
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) bits[i] = static_cast<uint16_t>(i);
  load(bits.data(), values.data(), n);
  store(values.data(), back.data(), n);
  for (size_t i = 0; i < n; ++i) {
    const double exact = decode(bits[i], format);
    if (std::isnan(exact)) {
      ASSERT_TRUE(std::isnan(values[i])) << i;
      ASSERT_TRUE(std::isnan(decode(back[i], format))) << i;
      ASSERT_EQ(back[i] & 0x8000, bits[i] & 0x8000) << i;
      continue;
    }
    ASSERT_EQ(static_cast<double>(values[i]), exact) << i;
    ASSERT_EQ(std::signbit(values[i]), (i & 0x8000) != 0) << i;
    ASSERT_EQ(back[i], bits[i]);
  }
}

// Floats of every sign and exponent, about every value a rounding may turn at.
std::vector<float> floats() {
  std::vector<uint32_t> low;
  for (const uint32_t ties : {0x1000u, 0x8000u}) {  // half a unit of float16 and of bfloat16
    for (uint32_t kept = 0; kept < 4; ++kept) {
      for (uint32_t i = 0; i < 3; ++i) low.push_back(kept * 2 * ties + ties + i - 1);
    }
  }
  for (const uint32_t i : {0u, 1u, 0x7FFFFFu, 0x7FFFFEu, 0x7FF000u, 0x7FEFFFu, 0x7F8000u, 0x7F7FFFu,
                           0x400000u, 0x3FFFFFu, 0x400001u, 0x2AAAAAu, 0x555555u}) {
    low.push_back(i);
  }
  std::vector<float> out;
  for (uint32_t high = 0; high < 512; ++high) {
    for (const uint32_t l : low) {
      const uint32_t bits = high << 23 | l;
      float x;
      std::memcpy(&x, &bits, sizeof x);
      out.push_back(x);
    }
  }
  // Every tie and its neighbours among float16's denormals.
  for (int i = 0; i < 1024; ++i) {
    const float tie = std::ldexp(static_cast<float>(2 * i + 1), -25);
    out.insert(out.end(), {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1.0f), -tie});
  }
  uint32_t state = 1;
  for (int i = 0; i < 200000; ++i) {
    state = state * 1664525u + 1013904223u;
    float x;
    std::memcpy(&x, &state, sizeof x);
    out.push_back(x);
  }
  return out;
}

void check_rounding(Store store, Format format) {
  const std::vector<float> in = floats();
  std::vector<uint16_t> out(in.size());
  store(in.data(), out.data(), static_cast<int64_t>(in.size()));
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(in[i])) {
      ASSERT_TRUE(std::isnan(decode(out[i], format))) << std::hexfloat << in[i];
      const uint32_t quiet = 1u << (format.mantissa_bits - 1);
      ASSERT_NE(out[i] & quiet, 0u) << "a signalling NaN";
    } else {
      ASSERT_EQ(out[i], encode(in[i], format)) << std::hexfloat << in[i];
    }
  }
}

TEST_P(HalfTest, AllHalfValues) { check_all_values(table().load_half, table().store_half, kHalf); }
TEST_P(HalfTest, AllBFloat16Values) {
  check_all_values(table().load_bfloat16, table().store_bfloat16, kBFloat16);
}
TEST_P(HalfTest, AllHalfValuesOfRows) {
  check_all_values(table().read_half, table().made_half, kHalf);
}
TEST_P(HalfTest, AllBFloat16ValuesOfRows) {
  check_all_values(table().read_bfloat16, table().made_bfloat16, kBFloat16);
}
TEST_P(HalfTest, HalfRoundingOfRows) { check_rounding(table().made_half, kHalf); }
TEST_P(HalfTest, BFloat16RoundingOfRows) { check_rounding(table().made_bfloat16, kBFloat16); }
TEST_P(HalfTest, HalfRounding) { check_rounding(table().store_half, kHalf); }
TEST_P(HalfTest, BFloat16Rounding) { check_rounding(table().store_bfloat16, kBFloat16); }

INSTANTIATE_TEST_SUITE_P(Levels, HalfTest, testing::ValuesIn(cpu::vector_isas()),
                         [](const auto& info) { return name_of(info.param); });

// The reference itself, at values anyone can check.
TEST(HalfReference, KnownValues) {
  EXPECT_EQ(encode(1.0f, kHalf), 0x3C00u);
  EXPECT_EQ(encode(65504.0f, kHalf), 0x7BFFu);
  EXPECT_EQ(encode(65519.0f, kHalf), 0x7BFFu);
  EXPECT_EQ(encode(65520.0f, kHalf), 0x7C00u);  // a tie, to even: inf
  EXPECT_EQ(encode(0x1p-24f, kHalf), 0x0001u);
  EXPECT_EQ(encode(0x1p-25f, kHalf), 0x0000u);
  EXPECT_EQ(encode(1.0f, kBFloat16), 0x3F80u);
  EXPECT_EQ(encode(-0.0f, kBFloat16), 0x8000u);
  EXPECT_EQ(encode(0x1.fffffep127f, kBFloat16), 0x7F80u);
}

}  // namespace
}  // namespace dvae::test
