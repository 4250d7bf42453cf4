// Products of bfloat16 matrices, by every instruction set that this CPU has for them: against
// float64, and the same bits whatever rows come with a row and in whichever thread.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>

#include "core/coarse.h"
#include "core/half.h"
#include "cpu/buffer.h"
#include "cpu/products.h"
#include "kernel_cases.h"

namespace dvae::test {
namespace {

using cpu::bf16_depth;
using cpu::Bf16Product;
using cpu::Bf16Products;
using cpu::Buffer;
using cpu::buffer;

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Shape {
  int64_t rows, depth, columns;
};
// Whole and broken blocks, tiles, panels and steps; the usual decoder's.
const Shape kShapes[] = {{1, 1, 1},    {3, 17, 16},    {12, 32, 32},  {15, 33, 17},
                         {16, 2, 48},  {17, 64, 3},    {31, 3, 33},   {32, 50, 200},
                         {33, 31, 65}, {34, 200, 784}, {97, 96, 112}, {64, 200, 200}};

std::vector<cpu::Isa> isas() {
  std::vector<cpu::Isa> found;
  for (const cpu::Isa isa : cpu::available_isas()) {
    if (isa == cpu::Isa::kAvx512Bf16 || (isa == cpu::Isa::kAmx && cpu::allow_amx())) {
      found.push_back(isa);
    }
  }
  return found;
}

float to_float(uint16_t bits) { return load(BFloat16{bits}); }
uint16_t to_bits(float v) {
  BFloat16 to;
  store(to, v);
  return to.bits;
}

// One product with all that it needs.
struct Operands {
  const Bf16Products& products;
  Shape shape;
  std::vector<float> a, b, start;  // a and b are bfloat16's values
  Buffer rows, panels;

  Operands(const Bf16Products& products_in, Shape s, bool b_is_float = true)
      : products(products_in), shape(s) {
    Random random(static_cast<uint64_t>(s.rows * 1000003 + s.depth * 1009 + s.columns));
    a = random.array<float>(s.rows * s.depth, -2, 2);
    b = random.array<float>(s.columns * s.depth, -1, 1);
    start = random.array<float>(cpu::round_up(s.columns, cpu::kBf16Columns), -3, 3);
    std::vector<uint16_t> bits;
    for (float& v : b) v = to_float((bits.push_back(to_bits(v)), bits.back()));
    panels = buffer(cpu::bf16_panel_bytes(s.depth, s.columns));
    const int64_t count = cpu::round_up(s.columns, cpu::kBf16Columns) / cpu::kBf16Columns;
    const void* from = b_is_float ? static_cast<const void*>(b.data()) : bits.data();
    const DType dtype = b_is_float ? DType::kFloat32 : DType::kBFloat16;
    for (int64_t i = count - 1; i >= 0; --i) {  // in any order
      products.pack(from, dtype, s.depth, s.depth, s.columns, panels.get(), i, i + 1);
    }
    set_a();
  }
  // Packs `a`, which it rounds.
  void set_a() {
    for (float& v : a) v = to_float(to_bits(v));
    rows = buffer(cpu::round_up(shape.rows, products.rows) * bf16_depth(shape.depth) * 2);
    products.pack_rows(a.data(), DType::kFloat32, shape.rows, shape.depth, rows.get());
  }
  Bf16Product product() const {
    Bf16Product p{};
    p.a = rows.get();
    p.panels = panels.get();
    p.rows = shape.rows;
    p.depth = shape.depth;
    p.columns = shape.columns;
    return p;
  }
  void run(const Bf16Product& p) const {
    const cpu::Bf16Session session(products);
    products.multiply(p);
  }
  // C, with `more` columns between its rows that nobody may touch.
  std::vector<float> sums(Bf16Product p, int64_t more = 0, float before = 7) const {
    std::vector<float> c(static_cast<size_t>(shape.rows * (shape.columns + more)), before);
    p.c = c.data();
    p.stride = shape.columns + more;
    run(p);
    return c;
  }
  // A Bᵀ, and Σ of the absolute terms, of every element.
  std::vector<std::pair<double, double>> exact() const {
    std::vector<std::pair<double, double>> all;
    for (int64_t r = 0; r < shape.rows; ++r) {
      for (int64_t j = 0; j < shape.columns; ++j) {
        const float *u = a.data() + r * shape.depth, *v = b.data() + j * shape.depth;
        double sum = 0, terms = 0;
        for (int64_t k = 0; k < shape.depth; ++k) {
          const double term = static_cast<double>(u[k]) * static_cast<double>(v[k]);
          sum += term;
          terms += std::abs(term);
        }
        all.emplace_back(sum, terms);
      }
    }
    return all;
  }
  // Of so many roundings to float32.
  double tolerance(double terms) const {
    return (static_cast<double>(shape.depth) + 2) * 0x1p-24 * terms;
  }
};

class ProductsTest : public testing::TestWithParam<cpu::Isa> {
 protected:
  const Bf16Products& products() const {
    return GetParam() == cpu::Isa::kAmx ? *cpu::bf16_products_amx() : *cpu::bf16_products_avx512();
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ProductsTest);

TEST_P(ProductsTest, AgreesWithFloat64) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << shape.rows << " " << shape.depth << " " << shape.columns);
    for (const bool b_is_float : {true, false}) {
      const Operands o(products(), shape, b_is_float);
      const auto exact = o.exact();
      for (const char* how : {"plain", "start", "add"}) {
        SCOPED_TRACE(how);
        Bf16Product p = o.product();
        if (how[0] == 's') p.start = o.start.data();
        p.add = how[0] == 'a';
        const int64_t more = how[0] == 'a' ? 5 : 0;
        const auto c = o.sums(p, more, 0.5f);
        int wrong = 0;
        for (int64_t r = 0; r < shape.rows; ++r) {
          for (int64_t j = 0; j < shape.columns + more; ++j) {
            const double got = c[static_cast<size_t>(r * (shape.columns + more) + j)];
            if (j >= shape.columns) {
              ASSERT_EQ(got, 0.5) << "beside C";
              continue;
            }
            const double first = how[0] == 'p'   ? 0
                                 : how[0] == 's' ? o.start[static_cast<size_t>(j)]
                                                 : 0.5;
            const auto [sum, terms] = exact[static_cast<size_t>(r * shape.columns + j)];
            const double error = std::abs(got - (first + sum));
            wrong += !(error <= o.tolerance(terms + std::abs(first)));
          }
        }
        EXPECT_EQ(wrong, 0);
      }
    }
  }
}

TEST_P(ProductsTest, NextLayersInputIsTheActivationRounded) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << shape.rows << " " << shape.depth << " " << shape.columns);
    const Operands o(products(), shape);
    Bf16Product p = o.product();
    p.start = o.start.data();
    const auto c = o.sums(p);
    for (const auto activation :
         {Activation::kNone, Activation::kSoftplus, Activation::kRelu, Activation::kTanh}) {
      SCOPED_TRACE(kActivationNames[static_cast<int>(activation)]);
      const int64_t stride = bf16_depth(shape.columns);
      const Buffer next = buffer((shape.rows + 1) * stride * 2);
      uint16_t* bits = static_cast<uint16_t*>(next.get());
      std::fill(bits, bits + (shape.rows + 1) * stride, uint16_t{0x1234});
      Bf16Product q = p;
      q.next = bits;
      q.activation = activation;
      o.run(q);
      for (int64_t r = 0; r < shape.rows; ++r) {
        for (int64_t j = 0; j < stride; ++j) {
          const double got = to_float(bits[r * stride + j]);
          if (j >= shape.columns) {
            ASSERT_EQ(bits[r * stride + j], 0) << "padding";
            continue;
          }
          const double v = c[static_cast<size_t>(r * shape.columns + j)];
          const double f = activation == Activation::kSoftplus
                               ? std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v)))
                           : activation == Activation::kRelu ? std::max(v, 0.0)
                           : activation == Activation::kTanh ? std::tanh(v)
                                                             : v;
          // Half a unit of 8 bits, and what the float32 before it may be wrong by.
          ASSERT_LE(std::abs(got - f), (0x1p-9 + 1e-4) * 2 * std::abs(f)) << v;
        }
      }
      for (int64_t j = 0; j < stride; ++j) ASSERT_EQ(bits[shape.rows * stride + j], 0x1234);
    }
  }
}

TEST_P(ProductsTest, RowIsTheSameBitsWhateverComesWithIt) {
  const Shape whole{97, 200, 113};
  const Operands all(products(), whole);
  const auto expected = all.sums(all.product());
  for (const int64_t first : {1, 15, 40, 96}) {
    for (int64_t rows : {1, 13, 17, 57}) {
      rows = std::min(rows, whole.rows - first);
      Operands some(products(), {rows, whole.depth, whole.columns});
      some.a.assign(all.a.begin() + first * whole.depth,
                    all.a.begin() + (first + rows) * whole.depth);
      some.set_a();
      Bf16Product p = some.product();
      p.panels = all.panels.get();
      const auto got = some.sums(p);
      EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin() + first * whole.columns));
    }
  }
}

TEST_P(ProductsTest, ThreadsGiveTheSameBits) {
  const Operands o(products(), {64, 200, 200});
  const auto expected = o.sums(o.product());
  std::vector<std::vector<float>> got(4);
  std::vector<std::thread> pool;
  for (auto& one : got) pool.emplace_back([&] { one = o.sums(o.product()); });
  for (std::thread& t : pool) t.join();
  for (const auto& one : got) EXPECT_EQ(one, expected);
}

TEST_P(ProductsTest, WhatIsNotFiniteStaysInItsRow) {
  Operands o(products(), {40, 50, 20});
  const auto expected = o.sums(o.product());
  o.a[3 * 50 + 7] = std::numeric_limits<float>::quiet_NaN();
  o.a[17 * 50 + 49] = kInf;
  o.set_a();
  const auto got = o.sums(o.product());
  for (int64_t r = 0; r < 40; ++r) {
    for (int64_t j = 0; j < 20; ++j) {
      const auto at = static_cast<size_t>(r * 20 + j);
      if (r == 3) {
        EXPECT_TRUE(std::isnan(got[at]));
      } else if (r == 17) {
        EXPECT_EQ(got[at], o.b[static_cast<size_t>(j * 50 + 49)] > 0 ? kInf : -kInf);
      } else {
        EXPECT_EQ(got[at], expected[at]);
      }
    }
  }
  // The next layer's padding is 0, not NaN, beside an infinite activation.
  const Buffer next = buffer(64 * 32 * 2);
  Bf16Product p = o.product();
  p.next = next.get();
  p.activation = Activation::kRelu;
  o.run(p);
  for (int64_t j = 20; j < 32; ++j) {
    EXPECT_EQ(static_cast<const uint16_t*>(next.get())[17 * 32 + j], 0);
  }
}

TEST_P(ProductsTest, NothingToDo) {
  const Operands none(products(), {0, 5, 7});
  EXPECT_TRUE(none.sums(none.product()).empty());
  const Operands no_depth(products(), {2, 0, 3});
  Bf16Product p = no_depth.product();
  p.start = no_depth.start.data();
  const auto c = no_depth.sums(p);
  for (size_t i = 0; i < c.size(); ++i) EXPECT_EQ(c[i], no_depth.start[i % 3]);
}

// --- what is made of them, in fewer instructions ---------------------------------------------

TEST(Coarse, ExpMinusAndSoftplus) {
  for (double x = -90; x < 90; x += 0.00071) {
    const auto v = static_cast<float>(x);
    const double m = std::abs(static_cast<double>(v)), e = std::exp(-m);
    ASSERT_NEAR(coarse_exp_minus(v), e, (1 + m) * 2e-7 * e + 0x1p-126) << v;
    const double y = std::max(static_cast<double>(v), 0.0) + std::log1p(e);
    ASSERT_NEAR(coarse_softplus(v), y, 2e-5 * y + 0x1p-126) << v;
  }
  EXPECT_EQ(coarse_exp_minus(0), 1.0f);
  EXPECT_EQ(coarse_softplus(kInf), kInf);
  for (const float x : {kInf, -kInf, 1e30f, -100.0f}) EXPECT_EQ(coarse_exp_minus(x), 0x1p-126f);
  for (const uint32_t bits : {0x7FC00000u, 0xFFC00001u, 0x7F800001u}) {
    EXPECT_TRUE(std::isnan(coarse_softplus(bit_cast<float>(bits))));
  }
}

TEST(Coarse, BernoulliInItsTerms) {
  for (const float x : {0.0f, 0.3f, 1.0f}) {
    for (double l = -85; l < 85; l += 0.173) {
      const auto logit = static_cast<float>(l);
      const double m = std::abs(static_cast<double>(logit)), c = logit > 0 ? 1.0 - x : x;
      float finite[] = {0, 1}, all[] = {0, 1};
      CoarseBernoulli::push<false>(finite[0], finite[1], logit, x);
      CoarseBernoulli::push<true>(all[0], all[1], logit, x);
      ASSERT_NEAR(finite[0], -c * m, 1e-6 * c * m) << logit;
      ASSERT_NEAR(finite[1], 1 + std::exp(-m), 2e-6) << logit;
      ASSERT_EQ(all[0], finite[0]) << logit;
      ASSERT_EQ(all[1], finite[1]) << logit;
      ASSERT_NEAR(CoarseBernoulli::finish(all[0], all[1]), -c * m - std::log1p(std::exp(-m)),
                  2e-6 * (1 + c * m))
          << logit;
    }
  }
  // Of certain logits, right and wrong ones.
  for (const float logit : {kInf, -kInf}) {
    for (const float x : {0.0f, 1.0f}) {
      float a = 0, b = 1;
      CoarseBernoulli::push<true>(a, b, logit, x);
      EXPECT_EQ(a, (logit > 0) == (x > 0) ? 0.0f : -kInf) << logit << " " << x;
      EXPECT_EQ(b, 1.0f);
    }
  }
}

TEST_P(ProductsTest, BernoulliIsTheKernelToAMillionth) {
  for (const int64_t size : {1, 15, 16, 17, 784, 1024, 1317, 3001}) {
    SCOPED_TRACE(size);
    constexpr int64_t kSamples = 3, kExamples = 2, kRows = 2 * kExamples * kSamples, kFirst = 4;
    Random random(static_cast<uint64_t>(size));
    auto logits = random.array<float>(kRows * size, -9, 9);
    auto x = random.array<float>(kExamples * size, 0, 1);
    for (size_t i = 0; i < x.size(); i += 2) x[i] = std::round(x[i]);
    x[0] = x[static_cast<size_t>(size)] = 1;
    const auto ratio = random.array<float>(kRows, -5, 5);
    const auto at = [&](int64_t row, int64_t j) -> float& {
      return logits[static_cast<size_t>(row * size + j)];
    };
    at(5, 0) = kInf;   // certain, and right
    at(6, 0) = -kInf;  // and wrong
    at(7, size - 1) = std::numeric_limits<float>::quiet_NaN();
    at(8, 0) = -60;
    std::vector<float> got(kRows, 3);
    auto p = decoder_params<LogWeightParams>(logits.data() + kFirst * size, x.data(), 2 * kExamples,
                                             kExamples, kSamples, size);
    p.first_row = kFirst;  // a tile
    p.log_ratio = ratio.data();
    p.log_w = got.data();
    products().bernoulli(p, kFirst, kRows);
    for (int64_t row = 0; row < kRows; ++row) {
      const auto i = static_cast<size_t>(row);
      if (row < kFirst) {
        EXPECT_EQ(got[i], 3) << "before the tile";
        continue;
      }
      double density = 0, terms = std::abs(static_cast<double>(ratio[i]));
      for (int64_t j = 0; j < size; ++j) {
        const double l = at(row, j);
        const double v = x[static_cast<size_t>(row / kSamples % kExamples * size + j)];
        const double c = l > 0 ? 1 - v : v;
        const double log_p = (c == 0 ? 0 : -c * std::abs(l)) - std::log1p(std::exp(-std::abs(l)));
        density += log_p;
        terms += 1 + std::abs(log_p);
      }
      if (std::isfinite(density)) {
        EXPECT_NEAR(got[i], density + static_cast<double>(ratio[i]), 1e-6 * terms) << row;
      } else {
        EXPECT_EQ(std::isnan(got[i]), std::isnan(density)) << row;
        EXPECT_EQ(std::isinf(got[i]), std::isinf(density)) << row;
      }
    }
    EXPECT_TRUE(std::isnan(got[7]) && std::isinf(got[6]) && std::isfinite(got[5]));
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, ProductsTest, testing::ValuesIn(isas()),
                         [](const auto& info) { return std::string(cpu::isa_name(info.param)); });

TEST(Products, OnesInUseAreTheIsas) {
  const Bf16Products* const expected = cpu::bf16_isa() == cpu::Isa::kAmx ? cpu::bf16_products_amx()
                                       : cpu::bf16_isa() == cpu::Isa::kAvx512Bf16
                                           ? cpu::bf16_products_avx512()
                                           : nullptr;
  EXPECT_EQ(cpu::bf16_products(), expected);
  EXPECT_LE(cpu::bf16_isa(), cpu::level_in_use());
  if (cpu::level_in_use() <= cpu::Isa::kAvx512) {
    EXPECT_EQ(expected, nullptr);
  }
}

}  // namespace
}  // namespace dvae::test
