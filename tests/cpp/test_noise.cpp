// Philox's published answers, and the mapping from indices to numbers, pinned.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/noise.h"
#include "math_table.h"

namespace dvae::test {
namespace {

struct KnownAnswer {
  uint32_t counter[4], key[2], answer[4];
};

// Random123's kat_vectors, philox4x32 10.
const KnownAnswer kAnswers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    // Digits of π.
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

TEST(Philox, KnownAnswers) {
  for (const KnownAnswer& a : kAnswers) {
    uint32_t c[4] = {a.counter[0], a.counter[1], a.counter[2], a.counter[3]};
    philox4x32(c[0], c[1], c[2], c[3], Key{a.key[0], a.key[1]});
    for (int i = 0; i < 4; ++i) EXPECT_EQ(c[i], a.answer[i]) << "word " << i;
  }
}

TEST(Philox, KeyIsTheSeedsLowAndHighWord) {
  const Key a = key_from_seed(0x299f31d0a4093822);
  EXPECT_EQ(a.k0, 0xa4093822u);
  EXPECT_EQ(a.k1, 0x299f31d0u);
  const Key b = key_from_seed(-1);
  EXPECT_EQ(b.k0, 0xffffffffu);
  EXPECT_EQ(b.k1, 0xffffffffu);
  const Key c = key_from_seed(INT64_MIN);
  EXPECT_EQ(c.k0, 0u);
  EXPECT_EQ(c.k1, 0x80000000u);
}

// The word of one element, as documented in noise.h.
uint32_t word(int64_t seed, Stream stream, uint32_t copy, uint32_t example, uint32_t sample,
              int64_t element) {
  uint32_t w[4];
  noise_lane(element / 64, static_cast<int>(element % 16), sample, example,
             stream_word(stream, copy), key_from_seed(seed), w[0], w[1], w[2], w[3]);
  return w[element % 64 / 16];
}

TEST(Noise, MappingIsDocumented) {
  // The π answer, reached through the indices: counter 0x243f6a88 is lane 8 of block 0x243f6a8.
  const int64_t element = int64_t{0x243f6a8} * 64 + 8;
  const auto stream = static_cast<Stream>(0x44);
  for (int w = 0; w < 4; ++w) {
    EXPECT_EQ(word(0x299f31d0a4093822, stream, 0x037073, 0x13198a2e, 0x85a308d3, element + 16 * w),
              kAnswers[2].answer[w]);
  }
}

struct PinnedWord {
  int64_t seed;
  Stream stream;
  uint32_t copy, example, sample;
  int64_t element;
  uint32_t word;
};

// A change of these changes every published number: it needs a new major version.
TEST(Noise, WordsArePinned) {
  const PinnedWord pinned[] = {
      {0, kStreamCorruption, 0u, 0u, 0u, 0, 0x6627e8d5},
      {1, kStreamCorruption, 0u, 0u, 0u, 1, 0xac08141b},
      {1, kStreamCorruption, 0u, 0u, 0u, 17, 0xdfc5ccbe},
      {1, kStreamCorruption, 0u, 2u, 3u, 63, 0xde4fb141},
      {-1, kStreamLatent, 0u, 5u, 7u, 64, 0x6fcf78e5},
      {1099511627779, kStreamLatent, 4u, 1000u, 4999u, 784, 0x35d2c7ec},
      {INT64_MIN, kStreamLatent, 16777215u, 4294967295u, 4294967295u, 785, 0xeba1c28b},
  };
  for (const PinnedWord& p : pinned) {
    EXPECT_EQ(word(p.seed, p.stream, p.copy, p.example, p.sample, p.element), p.word)
        << "element " << p.element << " of seed " << p.seed;
  }
}

struct PinnedNormal {
  uint32_t w0, w1;
  double n0, n1;
};

// By mpmath, 30 digits: √(−2 ln((w0 + ½)/2³²)) · (cos, sin)(2π w1/2³²).
const PinnedNormal kNormals[] = {
    {0x00000000, 0x00000000, 6.7637056350018952035, 0.0},
    {0xffffffff, 0x20000000, 0.000010789593219102890629, 0.000010789593219102890629},
    {0x80000000, 0x12345678, 1.061826655491353309, 0.50874209020119047479},
    {0x6627e8d5, 0xe169c58d, 0.99113767925403300755, -0.92466258839051159657},
    {0xbc57ac4c, 0x9b00dbd8, -0.61760895981180403222, -0.48206858703542400306},
    {0xd16cfe09, 0x94fdcceb, -0.55146790073689296073, -0.31224911285417985445},
    {0x00000001, 0x80000001, -6.5992794560936856075, -9.6542052264558007945e-9},
    {0xfffffffe, 0x5fffffff, -0.000018688123622235442109, 0.000018688123676913830018},
};

TEST(Noise, NormalsArePinned) {
  for (const PinnedNormal& p : kNormals) {
    const double radius = std::hypot(p.n0, p.n1);
    double d0, d1;
    normal_pair(p.w0, p.w1, d0, d1);
    EXPECT_NEAR(d0, p.n0, 1e-15 * radius);
    EXPECT_NEAR(d1, p.n1, 1e-15 * radius);
    for (const cpu::Isa isa : cpu::vector_isas()) {
      // Of the radius: near an axis the angle's rounding shows in the small one.
      float f0, f1;
      math_table(isa).normal_pair(&p.w0, &p.w1, &f0, &f1, 1);
      EXPECT_NEAR(f0, p.n0, 4e-7 * radius) << name_of(isa);
      EXPECT_NEAR(f1, p.n1, 4e-7 * radius) << name_of(isa);
    }
  }
}

TEST(Noise, NormalsOfFloatAndDoubleAgree) {
  constexpr int64_t n = 1 << 16;
  std::vector<uint32_t> w0(n), w1(n);
  for (uint32_t i = 0; i < n; ++i) {
    uint32_t c[4] = {i, 0, 0, 0};
    philox4x32(c[0], c[1], c[2], c[3], Key{1, 2});
    w0[i] = i < 256 ? ~i : i < 512 ? i : c[0];  // radii near 0 and the largest, too
    w1[i] = c[1];
  }
  for (const cpu::Isa isa : cpu::vector_isas()) {
    std::vector<float> f0(n), f1(n);
    std::vector<double> d0(n), d1(n);
    math_table(isa).normal_pair(w0.data(), w1.data(), f0.data(), f1.data(), n);
    math_table(isa).normal_pair_double(w0.data(), w1.data(), d0.data(), d1.data(), n);
    for (size_t i = 0; i < n; ++i) {
      const double radius = std::hypot(d0[i], d1[i]);
      ASSERT_NEAR(f0[i], d0[i], 4e-7 * radius) << name_of(isa) << " " << w0[i] << " " << w1[i];
      ASSERT_NEAR(f1[i], d1[i], 4e-7 * radius) << name_of(isa) << " " << w0[i] << " " << w1[i];
    }
  }
}

TEST(Noise, ThresholdIsExactAtTheEnds) {
  EXPECT_EQ(threshold(0.0f), 0);         // no 24-bit uniform is below
  EXPECT_EQ(threshold(1.0f), 1 << 24);   // every one is
  EXPECT_EQ(uniform24(0xffffffffu), (1 << 24) - 1);
  EXPECT_EQ(uniform24(0x000000ffu), 0);
  EXPECT_EQ(uniform24(0x80000000u), 1 << 23);
}

TEST(Noise, ThresholdRoundsHalfToEven) {
  EXPECT_EQ(threshold(0.5f), 1 << 23);
  EXPECT_EQ(threshold(0x1p-24f), 1);
  EXPECT_EQ(threshold(0x1p-25f), 0);
  EXPECT_EQ(threshold(0x3p-25f), 2);
  EXPECT_EQ(threshold(0x5p-25f), 2);
  EXPECT_EQ(threshold(0x1.000002p-25f), 1);
  EXPECT_EQ(threshold(1.0f - 0x1p-24f), (1 << 24) - 1);
  std::vector<float> p;
  for (uint32_t i = 0; i <= 1u << 16; ++i) p.push_back(static_cast<float>(i) * 0x1.000001p-16f);
  p.back() = 1.0f;
  for (const cpu::Isa isa : cpu::vector_isas()) {
    std::vector<int32_t> out(p.size());
    math_table(isa).threshold(p.data(), out.data(), static_cast<int64_t>(p.size()));
    for (size_t i = 0; i < p.size(); ++i) {
      ASSERT_EQ(out[i], std::nearbyint(static_cast<double>(p[i]) * 0x1p24)) << p[i];
    }
  }
}

}  // namespace
}  // namespace dvae::test
