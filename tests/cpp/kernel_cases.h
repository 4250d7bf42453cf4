// Every kernel of the table as a list of cases.
#pragma once

#include "categorical_cases.h"
#include "corruption_cases.h"
#include "latent_cases.h"
#include "log_weights_cases.h"

namespace dvae::test {

// --- logsumexp --------------------------------------------------------------------------------

template <class T>
void add_logsumexp(int64_t samples, Random& random, std::vector<Case>& cases) {
  using A = accumulate_t<T>;
  constexpr int t = TypeOf<T>::index;
  const int64_t rows = 7;
  const std::string name = " K=" + std::to_string(samples);
  const auto log_w = random.array<A>(rows * samples, -120, -80);
  const auto grad = random.array<A>(rows, -1, 1);
  std::vector<double> state(static_cast<size_t>(rows * 5), 0.0);
  Expected bound, gradient, update;
  for (int64_t n = 0; n < rows; ++n) {
    // State 0 has seen nothing, the others two weights.
    double* s = state.data() + n * 5;
    s[0] = -HUGE_VAL;
    if (n > 0) {
      const double a = random.uniform(-110, -70), b = random.uniform(-110, -70);
      s[0] = std::max(a, b);
      s[1] = std::exp(a - s[0]) + std::exp(b - s[0]);
      s[2] = std::exp(2 * (a - s[0])) + std::exp(2 * (b - s[0]));
      s[3] = a + b;
      s[4] = 2;
    }
    double max = -HUGE_VAL, total = 0, sum = 0, terms = 0;
    const auto at = [&](int64_t k) {
      return static_cast<double>(log_w[static_cast<size_t>(n * samples + k)]);
    };
    for (int64_t k = 0; k < samples; ++k) {
      max = std::max(max, at(k));
      sum += at(k);
      terms += std::abs(at(k));
    }
    double s1 = 0, s2 = 0;
    const double top = std::max(max, s[0]);
    for (int64_t k = 0; k < samples; ++k) {
      total += std::exp(at(k) - max);
      s1 += std::exp(at(k) - top);
      s2 += std::exp(2 * (at(k) - top));
    }
    const double b = max + std::log(total / static_cast<double>(samples));
    bound.add<A>(b, std::abs(max) + std::abs(b - max) + 1);
    const double g = static_cast<double>(grad[static_cast<size_t>(n)]);
    for (int64_t k = 0; k < samples; ++k) {
      const double w = std::exp(at(k) - max) / total;
      gradient.add<A>(g * w, std::abs(g) * w * (1 + std::abs(at(k) - max)));
    }
    update.add<double>(top, 0);
    update.add<double>(s[1] * std::exp(s[0] - top) + s1, s[1] + s1);
    update.add<double>(s[2] * std::exp(2 * (s[0] - top)) + s2, s[2] + s2);
    update.add<double>(s[3] + sum, std::abs(s[3]) + terms);
    update.add<double>(s[4] + static_cast<double>(samples), 0);
  }
  cases.push_back({"logmeanexp" + name,
                   [=](const Kernels& k, const Parallel& parallel) {
                     auto out = unset<A>(rows);
                     const LogMeanExpParams p = {log_w.data(), out.data(), nullptr,
                                                 nullptr,      rows,       samples};
                     parallel(rows, [&](int64_t i, int64_t j) { k.logmeanexp[t](p, i, j); });
                     return std::vector<Output>{output("bound", out)};
                   },
                   {bound}});
  cases.push_back(
      {"logmeanexp_backward" + name,
       [=](const Kernels& k, const Parallel& parallel) {
         auto out = unset<A>(rows * samples);
         const LogMeanExpParams p = {log_w.data(), nullptr, grad.data(), out.data(), rows, samples};
         parallel(rows, [&](int64_t i, int64_t j) { k.logmeanexp_backward[t](p, i, j); });
         return std::vector<Output>{output("log_w", out)};
       },
       {gradient}});
  cases.push_back({"lse_update" + name,
                   [=](const Kernels& k, const Parallel& parallel) {
                     auto out = unset<double>(rows * 5);
                     parallel(rows, [&](int64_t i, int64_t j) {
                       k.lse_update[t](state.data(), log_w.data(), samples, out.data(), i, j);
                     });
                     return std::vector<Output>{output("state", out)};
                   },
                   {update}});
}

// --- elementwise helpers ----------------------------------------------------------------------

template <class T>
void add_helpers(int64_t size, Random& random, std::vector<Case>& cases) {
  constexpr int t = TypeOf<T>::index;
  const int64_t rows = 11;
  const double factor = -0.375;
  const auto in = random.array<T>(rows * size, -4, 4);
  Expected scaled, sums;
  for (const T& v : in) scaled.add<T>(factor * value(v), 0);
  for (int64_t e = 0; e < size; ++e) {
    double sum = 0.25, terms = 0;
    for (int64_t r = 0; r < rows; ++r) {
      sum += value(in[static_cast<size_t>(r * size + e)]);
      terms += std::abs(value(in[static_cast<size_t>(r * size + e)]));
    }
    sums.add<accumulate_t<T>>(sum, terms);
  }
  const std::string name = " D=" + std::to_string(size);
  const auto out_of = random.array<T>(rows * size, 0, 12);  // values of log(1 + e^x)
  Expected activated, slope;
  for (size_t i = 0; i < in.size(); ++i) {
    const double x = value(in[i]), y = value(out_of[i]), d = x * -std::expm1(-y);
    activated.add<T>(std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))), 1);
    slope.add<T>(d, std::abs(d));
  }
  cases.push_back({"softplus" + name,
                   [=](const Kernels& k, const Parallel& parallel) {
                     auto out = unset<T>(rows * size);
                     parallel(rows * size, [&](int64_t i, int64_t j) {
                       k.softplus[t](in.data(), out.data(), i, j);
                     });
                     return std::vector<Output>{output("out", out)};
                   },
                   {activated}});
  cases.push_back({"softplus_backward" + name,
                   [=](const Kernels& k, const Parallel& parallel) {
                     auto out = unset<T>(rows * size);
                     parallel(rows * size, [&](int64_t i, int64_t j) {
                       k.softplus_backward[t](in.data(), out_of.data(), out.data(), i, j);
                     });
                     return std::vector<Output>{output("grad", out)};
                   },
                   {slope}});
  cases.push_back({"scale_by" + name,
                   [=](const Kernels& k, const Parallel& parallel) {
                     auto out = in;
                     parallel(rows * size, [&](int64_t i, int64_t j) {
                       k.scale_by[t](out.data(), factor, i, j);
                     });
                     return std::vector<Output>{output("grad", out)};
                   },
                   {scaled}});
  cases.push_back({"add_column_sums" + name,
                   [=](const Kernels& k, const Parallel& parallel) {
                     std::vector<double> out(static_cast<size_t>(size), 0.25);
                     parallel(size, [&](int64_t i, int64_t j) {
                       k.add_column_sums[t](in.data(), rows, size, out.data(), i, j);
                     });
                     return std::vector<Output>{output("sums", out)};
                   },
                   {sums}});
}

// --- all --------------------------------------------------------------------------------------

// Sizes of less than a block, one, one and a bit, many, and (1985) more than Bernoulli's product
// of kMaxPush · 64 factors takes; 785 latents are more than a row's exponentials that are kept.
template <class T>
std::vector<Case> make_cases() {
  Random random(42);
  std::vector<Case> cases;
  for (const int64_t d : {1, 63, 64, 65, 785}) {
    add_corruptions<T>(d, random, cases);
    add_latents<T>(d, random, cases);
    add_mixture<T>(d == 785 ? 2 : 4, d, random, cases);
    add_helpers<T>(d, random, cases);
    for (const bool bias : {false, true}) {
      for (const ScaleOf s : {ScaleOf::kNone, ScaleOf::kOne, ScaleOf::kEach, ScaleOf::kFull}) {
        if (bias && s == ScaleOf::kFull) continue;  // of an output that is held, which has none
        add_log_weights(LogWeights<T>(d, s, bias, random), cases);
        if (!bias) add_iwae(LogWeights<T>(d, s, bias, random), cases);
      }
    }
  }
  for (const auto l :
       {LikelihoodKind::kDiscretisedLogistic, LikelihoodKind::kNegativeBinomial,
        LikelihoodKind::kPoisson, LikelihoodKind::kLaplace, LikelihoodKind::kContinuousBernoulli,
        LikelihoodKind::kBernoulliProbabilities}) {
    for (const ScaleOf s : {ScaleOf::kNone, ScaleOf::kOne, ScaleOf::kEach, ScaleOf::kFull}) {
      if (!takes(l, s)) continue;
      for (const int64_t d : {65, 785}) {
        if (d == 65 && is_light(l) && s != ScaleOf::kFull) {
          add_log_weights(LogWeights<T>(d, s, true, random, l), cases);
        }
        add_log_weights(LogWeights<T>(d, s, false, random, l), cases);
        add_iwae(LogWeights<T>(d, s, false, random, l), cases);
      }
    }
  }
  add_log_weights(LogWeights<T>(1985, ScaleOf::kNone, false, random), cases);
  add_iwae(LogWeights<T>(1985, ScaleOf::kNone, false, random), cases);
  add_mixture<T>(1, 7, random, cases);
  add_mixture<T>(130, 2, random, cases);  // more components than a float sums
  for (const int64_t k : {1, 2, 15, 16, 17, 785}) add_logsumexp<T>(k, random, cases);
  if constexpr (std::is_same_v<T, accumulate_t<T>>) {
    // Of less than a vector, of one and a bit, of vectors of classes, and of more than one sum.
    for (const auto& [classes, variables] : {std::pair<int64_t, int64_t>{2, 3},
                                             {3, 35},
                                             {17, 16},
                                             {48, 2},
                                             {67, 3},
                                             {2, 300},
                                             {5, 0}}) {
      add_categorical<T>(classes, variables, random, cases);
    }
  }
  return cases;
}

// The cases of a dtype by its index, made when first asked for.
inline const std::vector<Case>& cases_of(int dtype) {
  static std::vector<Case> cases[kDTypes];
  static std::vector<Case> (*const make[kDTypes])() = {make_cases<float>, make_cases<double>,
                                                       make_cases<BFloat16>, make_cases<Half>};
  if (cases[dtype].empty()) cases[dtype] = make[dtype]();
  return cases[dtype];
}

}  // namespace dvae::test
