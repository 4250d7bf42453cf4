// Every kernel, at every level this CPU has: against float64, against the base level, and the same
// bits however its range is split.
#include <gtest/gtest.h>

#include <map>
#include <thread>
#include <tuple>

#include "cpu/products.h"
#include "kernel_cases.h"

namespace dvae::test {
namespace {

const char* const kDTypeNames[] = {"float32", "float64", "bfloat16", "float16"};

void whole(int64_t range, const Body& body) { body(0, range); }

// Uneven pieces, some empty, in no order.
void split(int64_t range, const Body& body) {
  std::vector<int64_t> cuts = {0, range};
  Random random(static_cast<uint64_t>(range));
  for (int i = 0; i < 6; ++i) {
    cuts.push_back(static_cast<int64_t>(random.uniform(0, static_cast<double>(range + 1))));
  }
  std::sort(cuts.begin(), cuts.end());
  for (size_t i = cuts.size() - 1; i > 0; --i) body(cuts[i - 1], cuts[i]);
}

// Four threads on disjoint ranges, as torch's parallel_for would have them.
void threads(int64_t range, const Body& body) {
  std::vector<std::thread> pool;
  for (int64_t i = 0; i < 4; ++i) {
    pool.emplace_back([&body, range, i] { body(i * range / 4, (i + 1) * range / 4); });
  }
  for (std::thread& t : pool) t.join();
}

// `factor`: 2 where both sides have been rounded.
void expect_near(const Output& o, const Expected& e, double factor = 1) {
  ASSERT_EQ(o.values.size(), e.values.size()) << o.name;
  int wrong = 0;
  for (size_t i = 0; i < o.values.size() && wrong < 3; ++i) {
    const double error = std::abs(o.values[i] - e.values[i]);
    if (!(error <= factor * e.tolerance[i])) {
      ++wrong;
      ADD_FAILURE() << o.name << "[" << i << "] is " << o.values[i] << ", not " << e.values[i]
                    << ": off by " << error << ", " << factor * e.tolerance[i] << " allowed";
    }
  }
}

// What a case gives over its range in one call; run once for all the tests.
const std::vector<Output>& whole_of(cpu::Isa isa, int dtype, size_t index) {
  static std::map<std::tuple<cpu::Isa, int, size_t>, std::vector<Output>> made;
  std::vector<Output>& outputs = made[{isa, dtype, index}];
  if (outputs.empty()) outputs = cases_of(dtype)[index].run(kernels_of(isa), whole);
  return outputs;
}

struct Level {
  cpu::Isa isa;
  int dtype;
};

class KernelTest : public testing::TestWithParam<Level> {
 protected:
  const Kernels& kernels() const { return kernels_of(GetParam().isa); }
  const std::vector<Case>& cases() const { return cases_of(GetParam().dtype); }
  const std::vector<Output>& outputs_of(size_t index) const {
    return whole_of(GetParam().isa, GetParam().dtype, index);
  }
};

TEST_P(KernelTest, AgreesWithFloat64) {
  for (size_t n = 0; n < cases().size(); ++n) {
    const Case& c = cases()[n];
    SCOPED_TRACE(c.name);
    const auto& outputs = outputs_of(n);
    ASSERT_EQ(outputs.size(), c.expected.size());
    for (size_t i = 0; i < outputs.size(); ++i) expect_near(outputs[i], c.expected[i]);
  }
}

TEST_P(KernelTest, AgreesWithBaseLevel) {
  if (GetParam().isa == cpu::Isa::kBase) GTEST_SKIP() << "this is the base level";
  for (size_t n = 0; n < cases().size(); ++n) {
    const Case& c = cases()[n];
    SCOPED_TRACE(c.name);
    const auto& base = whole_of(cpu::Isa::kBase, GetParam().dtype, n);
    const auto& outputs = outputs_of(n);
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (c.expected[i].exact) {
        EXPECT_EQ(outputs[i].bytes, base[i].bytes) << outputs[i].name;
      } else {
        expect_near(outputs[i], {base[i].values, c.expected[i].tolerance}, 2);
      }
    }
  }
}

// Bit for bit; what the order of a sum decides, to rounding.
void expect_same(const std::vector<Output>& one, const std::vector<Output>& other, const Case& c) {
  ASSERT_EQ(one.size(), other.size());
  for (size_t i = 0; i < one.size(); ++i) {
    if (one[i].ordered) {
      expect_near(other[i], c.expected[i]);
    } else {
      EXPECT_EQ(one[i].bytes, other[i].bytes) << one[i].name;
    }
  }
}

TEST_P(KernelTest, AnySplitGivesTheSameBits) {
  for (size_t n = 0; n < cases().size(); ++n) {
    const Case& c = cases()[n];
    SCOPED_TRACE(c.name);
    expect_same(outputs_of(n), c.run(kernels(), split), c);
  }
}

TEST_P(KernelTest, ThreadsGiveTheSameBits) {
  for (size_t n = 0; n < cases().size(); ++n) {
    const Case& c = cases()[n];
    SCOPED_TRACE(c.name);
    expect_same(outputs_of(n), c.run(kernels(), threads), c);
  }
}

TEST_P(KernelTest, StepsOfTheFusedLossGiveItsBits) {
  const auto& all = cases();
  int compared = 0;
  for (size_t n = 0; n + 1 < all.size(); ++n) {
    if (all[n + 1].name.rfind("iwae in steps", 0) != 0) continue;
    SCOPED_TRACE(all[n].name);
    expect_same(outputs_of(n), outputs_of(n + 1), all[n]);
    ++compared;
  }
  EXPECT_GT(compared, 20);
}

std::vector<Level> levels() {
  std::vector<Level> all;
  for (const cpu::Isa isa : cpu::vector_isas()) {
    for (int dtype = 0; dtype < kDTypes; ++dtype) all.push_back({isa, dtype});
  }
  return all;
}

std::string level_name(const testing::TestParamInfo<Level>& info) {
  return std::string(cpu::isa_name(info.param.isa)) + "_" + kDTypeNames[info.param.dtype];
}

// Layers of any width after one another, of exactly as much memory as they say they need; a row is
// the same, bit by bit, whatever rows come with it. One is of more than 1 MB, whose weights are
// asked for ahead.
template <class T>
void expect_dense(const Kernels& kernels, int dtype) {
  Random random(5);
  const auto numbers = [&](int64_t n) {
    std::vector<T> v(static_cast<size_t>(n));
    for (T& x : v) x = static_cast<T>(random.uniform(-2, 2));
    return v;
  };
  const int64_t panel = kernels.panel[dtype];
  for (const int64_t inputs : {0, 1, 5, 64, 1037}) {
    for (const int64_t outputs : {int64_t{1}, panel - 1, panel, 3 * panel + 5, int64_t{261}}) {
      for (const int64_t rows : {1, 5, 12, 31}) {
        const bool large = inputs * outputs > 1 << 18;
        if (!large && (inputs > 64 || outputs > 128)) continue;  // takes long
        const std::vector<T> in = numbers(rows * inputs), w = numbers(outputs * inputs);
        const std::vector<T> bias = numbers(outputs);
        const int64_t padded = (outputs + panel - 1) / panel * panel;
        std::vector<T> panels(static_cast<size_t>(padded * (inputs + 1)));
        kernels.pack_panels[dtype](w.data(), rows == 5 ? nullptr : bias.data(), inputs, outputs,
                                   panels.data());
        for (const Activation f :
             {Activation::kNone, Activation::kSoftplus, Activation::kRelu, Activation::kTanh}) {
          if (large && f != Activation::kNone) continue;
          std::vector<T> out(static_cast<size_t>(rows * outputs)), alone = out;
          const auto run = [&](int64_t first, int64_t count, std::vector<T>& to) {
            kernels.dense[dtype]({in.data() + first * inputs, panels.data(),
                                  to.data() + first * outputs, count, inputs, outputs, f});
          };
          run(0, rows, out);
          for (int64_t r = 0; r < rows; ++r) run(r, 1, alone);
          EXPECT_EQ(out, alone);
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < outputs; ++c) {
              double y = rows == 5 ? 0 : bias[static_cast<size_t>(c)], terms = std::abs(y);
              for (int64_t i = 0; i < inputs; ++i) {
                const double term = static_cast<double>(in[static_cast<size_t>(r * inputs + i)]) *
                                    w[static_cast<size_t>(c * inputs + i)];
                y += term;
                terms += std::abs(term);
              }
              if (f == Activation::kSoftplus)
                y = std::max(y, 0.0) + std::log1p(std::exp(-std::abs(y)));
              if (f == Activation::kRelu) y = std::max(y, 0.0);
              if (f == Activation::kTanh) y = std::tanh(y);
              const double unit = sizeof(T) == 8 ? 0x1p-52 : 0x1p-23;
              // A term is rounded twice, and the activation once more.
              const double allowed = unit * (terms * (static_cast<double>(inputs) + 2) / 2 + 4);
              ASSERT_NEAR(out[static_cast<size_t>(r * outputs + c)], y, allowed)
                  << inputs << " to " << outputs << ", row " << r << " of " << rows << ", " << c;
            }
          }
        }
      }
    }
  }
}

TEST_P(KernelTest, DenseLayers) {
  const int dtype = GetParam().dtype;
  if (dtype == static_cast<int>(DType::kFloat32)) {
    expect_dense<float>(kernels(), dtype);
  } else if (dtype == static_cast<int>(DType::kFloat64)) {
    expect_dense<double>(kernels(), dtype);
  } else {
    EXPECT_EQ(kernels().dense[dtype], nullptr);
    EXPECT_EQ(kernels().pack_panels[dtype], nullptr);
  }
}

// leftᵀ right of rows near one another and far apart, of fewer and of more than are gathered at
// once; `right` may be read past its end by less than a panel.
template <class T>
void expect_outer(const Kernels& kernels, int dtype) {
  const int64_t kOutputs[] = {1, 5, 13, 203, 517}, kInputs[] = {1, 31, 33, 519, 1041};
  for (const int64_t rows : {1, 7, 128, 131, 260}) {
    for (const int64_t outputs : kOutputs) {
      for (const int64_t inputs : kInputs) {
        if (rows > 7 && outputs * inputs > 203 * 519) continue;  // takes long
        const int64_t stride = outputs + 3;
        std::vector<T> left(static_cast<size_t>(rows * stride)),
            right(static_cast<size_t>(rows * inputs + kernels.panel[dtype] - 1)),
            to(static_cast<size_t>(outputs * inputs));
        for (size_t i = 0; i < left.size(); ++i) left[i] = static_cast<T>(i % 7) - T(3);
        for (size_t i = 0; i < right.size(); ++i) right[i] = static_cast<T>(i % 11) - T(5);
        for (const bool first : {true, false}) {
          // Whole numbers, of which sums are exact.
          std::fill(to.begin(), to.end(), first ? static_cast<T>(NAN) : T(2));
          kernels.add_outer[dtype](
              {left.data(), right.data(), to.data(), rows, outputs, inputs, stride, first});
          for (int64_t o = 0; o < outputs; o += 1 + o / 9) {
            for (int64_t i = 0; i < inputs; i += 1 + i / 9) {
              T expected = first ? T(0) : T(2);
              for (int64_t r = 0; r < rows; ++r) {
                expected += left[static_cast<size_t>(r * stride + o)] *
                            right[static_cast<size_t>(r * inputs + i)];
              }
              ASSERT_EQ(to[static_cast<size_t>(o * inputs + i)], expected)
                  << rows << ' ' << outputs << ' ' << inputs << ' ' << o << ' ' << i;
            }
          }
        }
      }
    }
  }
}

TEST_P(KernelTest, OuterProducts) {
  const int dtype = GetParam().dtype;
  if (dtype == static_cast<int>(DType::kFloat32)) {
    expect_outer<float>(kernels(), dtype);
  } else if (dtype == static_cast<int>(DType::kFloat64)) {
    expect_outer<double>(kernels(), dtype);
  } else {
    EXPECT_EQ(kernels().add_outer[dtype], nullptr);
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, KernelTest, testing::ValuesIn(levels()), level_name);

// --- limits -----------------------------------------------------------------------------------

constexpr double kInf = HUGE_VAL;
const double kNaN = std::nan("");

template <class T>
struct Limits {
  using A = accumulate_t<T>;
  static constexpr int t = TypeOf<T>::index;

  // Three rows n of two samples k, D = 65, of which row (1, 0) holds `special` at one element.
  static std::vector<double> log_weights(const Kernels& k, double special, double x_there,
                                         std::vector<double>* gradient) {
    const int64_t d = 65, rows = 6;
    std::vector<T> params(rows * d, make<T>(0.5)), grad_params = unset<T>(rows * d);
    std::vector<A> x(3 * d, A(1)), log_ratio(rows, A(0)), grad(rows, A(1)), log_w = unset<A>(rows);
    params[2 * d + 64] = make<T>(special);
    x[1 * d + 64] = static_cast<A>(x_there);
    const auto p = decoder_params<DecoderParams>(params.data(), x.data(), rows, 3, 2, d);
    k.log_weights[0][t]({p, log_ratio.data(), log_w.data()}, ScaleKind::kNone, 0, rows);
    k.log_weights_backward[0][t]({p, grad.data(), grad_params.data(), nullptr}, ScaleKind::kNone,
                                 nullptr, 0, rows);
    if (gradient != nullptr) *gradient = output("", grad_params).values;
    return output("", log_w).values;
  }

  static void check_logits(const Kernels& k) {
    std::vector<double> gradient;
    const double other = log_weights(k, 0.5, 1, nullptr)[0];
    for (const double x : {0.0, 1.0}) {
      for (const double sign : {-1.0, 1.0}) {
        const bool right = (sign > 0) == (x == 1);
        const auto log_w = log_weights(k, sign * kInf, x, &gradient);
        EXPECT_EQ(log_w[0], other);
        EXPECT_EQ(log_w[3], x == 1 ? other : log_weights(k, 0.5, 0, nullptr)[3]);
        if (right) {
          // log p = 0 there: what 64 of the 65 elements give.
          EXPECT_NEAR(log_w[2], other * 64 / 65, 1e-3);
        } else {
          EXPECT_EQ(log_w[2], -kInf);
        }
        EXPECT_EQ(gradient[2 * 65 + 64], right ? 0 : x == 1 ? 1 : -1);
      }
    }
    const auto log_w = log_weights(k, kNaN, 1, &gradient);
    for (size_t row = 0; row < 6; ++row) {
      EXPECT_EQ(std::isnan(log_w[row]), row == 2) << row;
    }
    for (size_t i = 0; i < gradient.size(); ++i) {
      EXPECT_EQ(std::isnan(gradient[i]), i == 2 * 65 + 64) << i;
    }
  }

  // log-weights (n, k) straight into the reductions.
  static void check_reductions(const Kernels& k) {
    const std::vector<A> log_w = {A(-1), A(-kInf), A(-kInf), A(-kInf), A(kNaN),
                                  A(-2), A(-3),    A(kNaN),  A(-5),    A(-5)};
    std::vector<A> bound = unset<A>(5), grad(5, A(2)), grad_log_w = unset<A>(10), w = log_w;
    const LogMeanExpParams p = {log_w.data(), bound.data(), grad.data(), grad_log_w.data(), 5, 2};
    k.logmeanexp[t](p, 0, 5);
    const auto b = output("", bound).values;
    EXPECT_NEAR(b[0], -1 - std::log(2), 1e-6);
    EXPECT_EQ(b[1], -kInf);
    EXPECT_TRUE(std::isnan(b[2]));
    EXPECT_TRUE(std::isnan(b[3]));
    EXPECT_EQ(b[4], -5);
    k.logmeanexp_backward[t](p, 0, 5);
    const auto g = output("", grad_log_w).values;
    EXPECT_NEAR(g[0], 2, 1e-6);
    EXPECT_EQ(g[1], 0);
    EXPECT_EQ(g[2], 0);
    EXPECT_EQ(g[3], 0);
    for (size_t i = 4; i < 8; ++i) EXPECT_TRUE(std::isnan(g[i])) << i;
    EXPECT_NEAR(g[8], 1, 1e-6);

    std::vector<A> bound2 = unset<A>(5);
    IwaeParams q{};
    q.log_w = w.data();
    q.bound = bound2.data();
    q.samples = 2;
    k.iwae_normalise[t](q, 0, 5);
    const auto b2 = output("", bound2).values, weights = output("", w).values;
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_TRUE(b2[i] == b[i] || (std::isnan(b2[i]) && std::isnan(b[i]))) << i;
    }
    EXPECT_EQ(weights[0], 1);
    for (size_t i = 1; i < 4; ++i) EXPECT_EQ(weights[i], 0) << i;
    for (size_t i = 4; i < 8; ++i) EXPECT_TRUE(std::isnan(weights[i])) << i;

    std::vector<double> state(25, 0.0), out(25);
    for (size_t n = 0; n < 5; ++n) state[5 * n] = -kInf;
    k.lse_update[t](state.data(), log_w.data(), 2, out.data(), 0, 5);
    const auto bound_of = [&](size_t n) {
      return out[5 * n] + std::log(out[5 * n + 1] / out[5 * n + 4]);
    };
    EXPECT_NEAR(bound_of(0), -1 - std::log(2), 1e-12);
    EXPECT_EQ(bound_of(1), -kInf);
    for (const size_t n : {2, 3}) {
      EXPECT_TRUE(std::isnan(bound_of(n))) << n;
      EXPECT_TRUE(std::isnan(out[5 * n])) << "the largest of NaN and a number";
    }
    EXPECT_EQ(bound_of(4), -5);
    // No sample leaves the state as it was.
    k.lse_update[t](out.data(), log_w.data(), 0, state.data(), 0, 2);
    EXPECT_TRUE(std::equal(out.begin(), out.begin() + 10, state.begin()));
  }

  static IwaeParams loss_params(const std::vector<T>& params, std::vector<T>& grad,
                                const std::vector<A>& x, const std::vector<A>& log_ratio,
                                std::vector<A>& log_w, std::vector<A>& bound) {
    const auto rows = static_cast<int64_t>(log_w.size()), n = static_cast<int64_t>(bound.size());
    const auto size = static_cast<int64_t>(params.size()) / rows;
    auto p = decoder_params<IwaeParams>(params.data(), x.data(), rows, n, rows / n, size);
    p.grad_params = grad.data();
    p.log_ratio = log_ratio.data();
    p.log_w = log_w.data();
    p.bound = bound.data();
    p.multiplier = 1;
    return p;
  }

  // The whole fused loss where every weight is 0: no NaN of 0 · inf.
  static void check_fused(const Kernels& k) {
    const int64_t d = 65;
    std::vector<T> params(6 * d, make<T>(0.5));
    std::vector<A> x(3 * d, A(1)), log_ratio(6, A(0)), log_w = unset<A>(6), bound = unset<A>(3);
    params[2 * d] = make<T>(-kInf);  // both samples of n = 1
    params[3 * d + 64] = make<T>(-kInf);
    params[4 * d + 7] = make<T>(-kInf);  // one sample of n = 2
    IwaeParams p = loss_params(params, params, x, log_ratio, log_w, bound);
    k.iwae[0][t](p, ScaleKind::kNone, nullptr, 0, 3);
    const auto b = output("", bound).values, g = output("", params).values;
    EXPECT_TRUE(std::isfinite(b[0]));
    EXPECT_EQ(b[1], -kInf);
    EXPECT_NEAR(b[2], b[0] - std::log(2), 1e-5);
    for (size_t i = 0; i < g.size(); ++i) {
      const size_t row = i / static_cast<size_t>(d);
      if (row == 2 || row == 3 || row == 4) {
        EXPECT_EQ(g[i], 0) << i;
      } else {
        EXPECT_NEAR(g[i], (row == 5 ? 1 : 0.5) / (1 + std::exp(0.5)), 2e-3) << i;
      }
    }
  }

  // A weight of 0 stops an infinite derivative: a mean at infinity, of one sample of the second n.
  static void check_gaussian(const Kernels& k) {
    const int64_t d = 65;
    std::vector<T> params(4 * d, make<T>(0.5)), scale(4 * d, make<T>(2));
    std::vector<T> grad = unset<T>(4 * d), grad_scale = unset<T>(4 * d);
    std::vector<A> x(2 * d, A(1)), log_ratio(4, A(0)), log_w = unset<A>(4), bound = unset<A>(2);
    const std::vector<A> upstream = {A(1), A(1), A(0), A(1)};
    params[2 * d + 64] = make<T>(kInf);
    IwaeParams p = loss_params(params, grad, x, log_ratio, log_w, bound);
    p.scale = scale.data();
    p.grad_scale = grad_scale.data();
    const auto row_2_is_zero = [&] {
      const auto g = output("", grad).values, s = output("", grad_scale).values;
      for (size_t i = 0; i < g.size(); ++i) {
        EXPECT_EQ(g[i] == 0, i / 65 == 2) << i;
        EXPECT_EQ(s[i] == 0, i / 65 == 2) << i;
        EXPECT_TRUE(std::isfinite(g[i]) && std::isfinite(s[i])) << i;
      }
    };
    k.iwae[1][t](p, ScaleKind::kFull, nullptr, 0, 2);
    const auto b = output("", bound).values;
    EXPECT_TRUE(std::isfinite(b[0]));
    EXPECT_NEAR(b[1], b[0] - std::log(2), 1e-4);
    row_2_is_zero();
    std::fill(grad.begin(), grad.end(), make<T>(kNaN));
    std::fill(grad_scale.begin(), grad_scale.end(), make<T>(kNaN));
    k.log_weights_backward[1][t]({p, upstream.data(), grad.data(), grad_scale.data()},
                                 ScaleKind::kFull, nullptr, 0, 4);
    row_2_is_zero();
  }

  // Logits of 0 have the largest factors, 1 + e^0 = 2: no product of theirs may overflow.
  static void check_zero_logits(const Kernels& k) {
    for (const int64_t d : {1920, 2560, 5000}) {
      const std::vector<T> params(static_cast<size_t>(d), make<T>(0));
      const std::vector<A> x(static_cast<size_t>(d), A(0.5));
      std::vector<A> log_w = unset<A>(1);
      auto p = decoder_params<LogWeightParams>(params.data(), x.data(), 1, 1, 1, d);
      p.log_w = log_w.data();
      k.log_weights[0][t](p, ScaleKind::kNone, 0, 1);
      const double expected = -static_cast<double>(d) * std::log(2);
      EXPECT_NEAR(output("", log_w).values[0], expected, kRelative<T> * -expected);
    }
  }

  static void check(const Kernels& k) {
    check_logits(k);
    check_reductions(k);
    check_fused(k);
    check_gaussian(k);
    check_zero_logits(k);
  }
};

TEST(KernelLimits, InfinitiesAndNaN) {
  for (const cpu::Isa isa : cpu::vector_isas()) {
    const Kernels& k = kernels_of(isa);
    const auto check = [&](int dtype, void (*f)(const Kernels&)) {
      SCOPED_TRACE(std::string(cpu::isa_name(isa)) + " " + kDTypeNames[dtype]);
      f(k);
    };
    check(0, Limits<float>::check);
    check(1, Limits<double>::check);
    check(2, Limits<BFloat16>::check);
    check(3, Limits<Half>::check);
  }
}

TEST(Kernels, ScaleSumIsAddedTo) {
  Random random(1);
  const LogWeights<double> c(65, ScaleOf::kEach, false, random);
  for (const cpu::Isa isa : cpu::vector_isas()) {
    const Kernels& k = kernels_of(isa);
    auto grad = unset<double>(c.rows() * c.size);
    LogWeightGradParams p = c.backward();
    p.grad_params = grad.data();
    std::vector<double> zero(128, 0.0), thousand(128, 1000.0);
    for (auto* sum : {&zero, &thousand}) {
      k.log_weights_backward[1][1](p, c.kind(), sum->data(), 0, c.rows());
    }
    for (size_t i = 0; i < 65; ++i) {
      EXPECT_NE(zero[i], 0);
      EXPECT_NEAR(thousand[i], 1000 + zero[i], 1e-10);
    }
    // No sum wanted: nothing is written through the null pointer.
    k.log_weights_backward[1][1](p, c.kind(), nullptr, 0, c.rows());
  }
}

// Long rows of equal terms, which a float's sum loses in one direction, and large counts: a
// log-weight is right to 0.05 nats.
struct LongRow {
  LikelihoodKind likelihood;
  ScaleKind kind;
  int64_t size;
  float param, scale, x;
  double density;  // of an element
};
double binomial_density(double mean, double t, double x) {
  return std::lgamma(x + t) - std::lgamma(t) - std::lgamma(x + 1) - t * std::log1p(mean / t) -
         x * std::log1p(t / mean);
}
TEST(Kernels, LongSumsAreRightToAFewHundredths) {
  const double u = (0.25 - 0.31f) / 0.013f, logit = 2.7f;
  std::vector<LongRow> rows = {
      {LikelihoodKind::kBernoulli, ScaleKind::kNone, 12288, 2.7f, 1, 0.3f,
       -(0.7 * logit + std::log1p(std::exp(-logit)))},
      {LikelihoodKind::kGaussian, ScaleKind::kFull, 12288, 0.31f, 0.013f, 0.25f,
       -0.5 * u * u - std::log(0.013f) - 0.91893853320467274178},
      {LikelihoodKind::kGaussian, ScaleKind::kShared, 12288, 0.31f, 0.013f, 0.25f,
       -0.5 * u * u - std::log(0.013f) - 0.91893853320467274178},
  };
  for (const float mean : {3.7f, 3e4f, 1e6f}) {
    for (const float t : {0.02f, 10.0f, 1e6f}) {
      for (const float part : {0.98f, 1.0f, 1.003f}) {
        const float x = std::round(part * mean);
        const double density = binomial_density(mean, t, x);
        for (const auto kind : {ScaleKind::kShared, ScaleKind::kFull}) {
          rows.push_back({LikelihoodKind::kNegativeBinomial, kind, 2001, mean, t, x, density});
        }
      }
    }
  }
  for (const cpu::Isa isa : cpu::vector_isas()) {
    for (const LongRow& row : rows) {
      const std::vector<float> params(row.size, row.param), scale(row.size + kBlock, row.scale);
      const std::vector<float> x(row.size, row.x);
      float log_w = 0;
      LogWeightParams p{};
      p.params = params.data();
      p.scale = scale.data();
      const double log_scale = static_cast<double>(row.size) * std::log(row.scale);
      p.log_scale = &log_scale;
      p.scale_stride = kBlock;
      p.x = x.data();
      p.log_w = &log_w;
      p.rows = p.examples = p.samples = 1;
      p.size = row.size;
      kernels_of(isa).log_weights[static_cast<int>(row.likelihood)][0](p, row.kind, 0, 1);
      const double expected = static_cast<double>(row.size) * row.density;
      EXPECT_NEAR(log_w, expected, 0.05)
          << cpu::isa_name(isa) << " " << kLikelihoodNames[static_cast<int>(row.likelihood)] << " "
          << row.param << " " << row.scale << " " << row.x;
    }
  }
}

TEST_P(KernelTest, EmptyRangesTouchNothing) {
  const auto none = [](int64_t, const Body&) {};
  const auto empty = [](int64_t range, const Body& body) {
    for (const int64_t at : {int64_t{0}, range / 2, range}) body(at, at);
  };
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const auto untouched = c.run(kernels(), none), outputs = c.run(kernels(), empty);
    for (size_t i = 0; i < outputs.size(); ++i) {
      EXPECT_EQ(outputs[i].bytes, untouched[i].bytes) << outputs[i].name;
    }
  }
}

TEST(Kernels, TableInUseIsTheIsasFromAnyThread) {
  std::vector<std::thread> pool;
  for (int i = 0; i < 4; ++i) {
    pool.emplace_back([] { EXPECT_EQ(&cpu::kernels(), &kernels_of(cpu::isa_in_use())); });
  }
  for (std::thread& t : pool) t.join();
}

TEST(Isa, AvailableOnesAreCompiledIn) {
  const auto isas = cpu::available_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas[0], cpu::Isa::kBase);
  for (const cpu::Isa isa : isas) {
    const Kernels* const table = isa >= cpu::Isa::kAvx512 ? cpu::kernels_avx512()
                                 : isa == cpu::Isa::kAvx2 ? cpu::kernels_avx2()
                                                          : cpu::kernels_base();
    EXPECT_NE(table, nullptr) << cpu::isa_name(isa);
    EXPECT_TRUE(isa < cpu::Isa::kAvx512Bf16 || cpu::bf16_products_avx512() != nullptr);
    EXPECT_TRUE(isa < cpu::Isa::kAmx || cpu::bf16_products_amx() != nullptr);
    EXPECT_EQ(cpu::parse_isa(cpu::isa_name(isa)), isa);
  }
}

TEST(Isa, UnknownLevelNamesTheKnown) {
  try {
    cpu::parse_isa("sse9");
    FAIL() << "accepted";
  } catch (const std::runtime_error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("'sse9'"), std::string::npos) << message;
    for (const cpu::Isa isa : cpu::available_isas()) {
      EXPECT_NE(message.find(cpu::isa_name(isa)), std::string::npos) << message;
    }
  }
}

}  // namespace
}  // namespace dvae::test
