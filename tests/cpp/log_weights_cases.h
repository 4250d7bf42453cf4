// The cases of log-weights, their gradient and the fused loss.
#pragma once

#include "case.h"

namespace dvae::test {

// --- log-weights ------------------------------------------------------------------------------

enum class ScaleOf { kNone, kOne, kEach, kFull };

inline bool takes(LikelihoodKind likelihood, ScaleOf scale) {
  return has_scale(likelihood) == (scale != ScaleOf::kNone);
}

template <class T>
struct LogWeights {
  using A = accumulate_t<T>;
  int64_t copies = 2, examples = 3, samples = 5, size;
  bool has_bias;
  ScaleOf scale_of;
  LikelihoodKind likelihood_kind;
  std::vector<T> params, bias, full_scale;
  std::vector<A> shared_scale, x, log_ratio, grad;
  double multiplier = -0.125;
  double log_scale = 0;  // Σ log scale, of a shared one

  // of: the likelihood, where it takes such a scale; else Bernoulli.
  LogWeights(int64_t size_in, ScaleOf scale_of_in, bool bias_in, Random& random,
             LikelihoodKind of = LikelihoodKind::kGaussian)
      : size(size_in),
        has_bias(bias_in),
        scale_of(scale_of_in),
        likelihood_kind(takes(of, scale_of) ? of : LikelihoodKind::kBernoulli) {
    const bool counts = likelihood_kind == LikelihoodKind::kNegativeBinomial ||
                        likelihood_kind == LikelihoodKind::kPoisson;
    if (likelihood_kind == LikelihoodKind::kBernoulli) {
      params = random.array<T>(rows() * size, -12, 12);
    } else if (likelihood_kind == LikelihoodKind::kBernoulliProbabilities) {
      params = random.array<T>(rows() * size, 0.01, 0.99);
    } else {
      params = random.array<T>(rows() * size, counts ? 0.1 : -1, counts ? 9 : 2);
    }
    if (has_bias) bias = random.array<T>(size, counts ? 0.1 : -2, 2);
    x = random.data<A>(examples * size);
    for (A& v : x) {
      if (counts) v = std::floor(30 * v * v);
      if (likelihood_kind == LikelihoodKind::kDiscretisedLogistic) v = std::round(255 * v) / 255;
    }
    log_ratio = random.array<A>(rows(), -20, 20);
    grad = random.array<A>(rows(), -1, 1);
    grad[0] = 0;
    if (scale_of == ScaleOf::kOne) {
      shared_scale.assign(kBlock, static_cast<A>(0.7));
    } else if (scale_of == ScaleOf::kEach) {
      shared_scale = random.array<A>(whole_blocks(size), 0.2, 2);
    } else if (scale_of == ScaleOf::kFull) {
      full_scale = random.array<T>(rows() * size, 0.2, 2);
    }
    if (kind() == ScaleKind::kShared) {
      for (int64_t e = 0; e < size; ++e) log_scale += std::log(scale(0, e));
    }
  }

  int64_t rows() const { return copies * examples * samples; }
  int likelihood() const { return static_cast<int>(likelihood_kind); }
  ScaleKind kind() const {
    return scale_of == ScaleOf::kNone   ? ScaleKind::kNone
           : scale_of == ScaleOf::kFull ? ScaleKind::kFull
                                        : ScaleKind::kShared;
  }
  double scale(int64_t row, int64_t e) const {
    if (scale_of == ScaleOf::kFull) return value(full_scale[static_cast<size_t>(row * size + e)]);
    return static_cast<double>(
        shared_scale[static_cast<size_t>(scale_of == ScaleOf::kOne ? 0 : e)]);
  }
  double param(int64_t row, int64_t e) const {
    return value(params[static_cast<size_t>(row * size + e)]) +
           (has_bias ? value(bias[static_cast<size_t>(e)]) : 0);
  }
  double target(int64_t row, int64_t e) const {
    const int64_t example = row / samples % examples;
    return static_cast<double>(x[static_cast<size_t>(example * size + e)]);
  }

  // log p(x|z) of an element, the sum of its absolute terms, and its derivatives.
  struct Element {
    double density, terms, d_param, d_scale, d_param_terms, d_scale_terms;
  };
  Element element(int64_t row, int64_t e) const {
    const double p = param(row, e), v = target(row, e);
    if (likelihood_kind == LikelihoodKind::kBernoulli) {
      const double log1p_exp = std::max(p, 0.0) + std::log1p(std::exp(-std::abs(p)));
      const double sigmoid = 1 / (1 + std::exp(-p));
      return {v * p - log1p_exp, std::abs(v * p - log1p_exp), v - sigmoid, 0, v + sigmoid, 0};
    }
    if (likelihood_kind == LikelihoodKind::kBernoulliProbabilities) {
      const double log_p = v * std::log(p) + (1 - v) * std::log1p(-p);
      const double one = v / p, zero = (1 - v) / (1 - p);
      return {log_p, -log_p, one - zero, 0, one + zero, 0};
    }
    if (likelihood_kind == LikelihoodKind::kContinuousBernoulli) {
      // What cancels leaves long double digits enough.
      const long double m = std::abs(static_cast<long double>(p));
      const double h = static_cast<double>(1 / m - 1 / std::expm1(m));
      const double log_f = static_cast<double>(std::log(-std::expm1(-m) / m));
      const double c = p > 0 ? 1 - v : v, linear = c * std::abs(p);
      return {-linear - log_f, linear - log_f + 1, p > 0 ? h - c : c - h, 0, h + c, 0};
    }
    if (likelihood_kind == LikelihoodKind::kPoisson) {
      const double power = v * std::log(p), of_x = std::lgamma(v + 1);
      return {power - p - of_x, std::abs(power) + p + of_x, v / p - 1, 0, v / p + 1, 0};
    }
    // A bias and a parameter may cancel: their sum is rounded before x is subtracted.
    const double b = has_bias ? value(bias[static_cast<size_t>(e)]) : 0;
    const double p_terms = has_bias ? std::abs(p - b) + std::abs(b) : 0;
    const double s = scale(row, e);
    if (likelihood_kind == LikelihoodKind::kDiscretisedLogistic) {
      return discretised_logistic(p, s, v, p_terms);
    }
    if (likelihood_kind == LikelihoodKind::kNegativeBinomial) return negative_binomial(p, s, v);
    const double u = (v - p) / s, half_log_2pi = 0.91893853320467274178;
    const double u_terms = std::abs(u) + p_terms / s;
    if (likelihood_kind == LikelihoodKind::kLaplace) {
      const double sign = (u > 0) - (u < 0);
      return {-std::abs(u) - std::log(2 * s),
              u_terms + std::abs(std::log(s)) + 1,
              sign / s,
              (std::abs(u) - 1) / s,
              1 / s,
              (u_terms + 1) / s};
    }
    return {-0.5 * u * u - std::log(s) - half_log_2pi,
            std::abs(u) * u_terms + std::abs(std::log(s)) + half_log_2pi,
            u / s,
            (u * u - 1) / s,
            u_terms / s,
            (2 * std::abs(u) * u_terms + 1) / s};
  }
  static Element discretised_logistic(double mean, double s, double x, double mean_terms) {
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    const double h = 0.5 / 255, d = x - mean, carried = (std::abs(d) + h + mean_terms) / s;
    const bool first = x < h, last = x > 1 - h;
    // Both ends of the bin, seen from the mean: log p = log (σ(b) − σ(a)).
    const double a = (d - h) / s, b = (d + h) / s, w = 2 * h / s;
    const double above = last ? 0 : sigmoid(-b), below = first ? 0 : sigmoid(a);
    const double width = first || last ? 0 : w / std::expm1(w);
    // log (1 − σ(u)), which from a σ near 1 would have lost its digits.
    const auto log_rest = [](double u) {
      return -std::max(u, 0.0) - std::log1p(std::exp(-std::abs(u)));
    };
    const double log_p = (last ? 0 : log_rest(-b)) + (first ? 0 : log_rest(a)) +
                         (first || last ? 0 : std::log(-std::expm1(-w)));
    const double either = above + below;
    return {log_p,
            -log_p + either * carried,
            (below - above) / s,
            (a * below - b * above - width) / s,
            either * (1 + carried) / s,
            (either * (carried + carried * carried) + width) / s};
  }
  static Element negative_binomial(double mean, double t, double x) {
    const double gamma = std::lgamma(x + t) - std::lgamma(t), odds = std::log1p(mean / t);
    const double power = x == 0 ? 0 : x * std::log(mean / (t + mean));
    double digamma = 0;
    for (int i = 0; i < x; ++i) digamma += 1 / (t + i);
    return {gamma - std::lgamma(x + 1) - t * odds + power,
            std::abs(gamma) + std::lgamma(x + 1) + t * odds - power,
            (x / mean - 1) * t / (t + mean),
            digamma - odds + (mean - x) / (t + mean),
            (x / mean + 1) * t / (t + mean),
            digamma + odds + (mean + x) / (t + mean)};
  }

  // A row's log-weight, and the sum of its absolute terms.
  std::pair<double, double> log_weight(int64_t row) const {
    const double ratio = static_cast<double>(log_ratio[static_cast<size_t>(row)]);
    double sum = ratio, terms = std::abs(ratio);
    for (int64_t e = 0; e < size; ++e) {
      const auto v = element(row, e);
      sum += v.density;
      terms += v.terms;
    }
    return {sum, terms};
  }

  // Of each kernel, all but where to write.
  LogWeightParams forward() const {
    auto p = operands<LogWeightParams>();
    p.log_ratio = log_ratio.data();
    return p;
  }
  LogWeightGradParams backward() const {
    auto p = operands<LogWeightGradParams>();
    p.grad = grad.data();
    return p;
  }
  IwaeParams fused() const {
    auto p = operands<IwaeParams>();
    p.log_ratio = log_ratio.data();
    p.multiplier = multiplier;
    return p;
  }
  template <class P>
  P operands() const {
    auto p = decoder_params<P>(params.data(), x.data(), rows(), examples, samples, size);
    p.bias = has_bias ? bias.data() : nullptr;
    if (scale_of == ScaleOf::kFull) {
      p.scale = full_scale.data();
    } else if (scale_of != ScaleOf::kNone) {
      p.scale = shared_scale.data();
      p.scale_stride = scale_of == ScaleOf::kOne ? 0 : kBlock;
      p.log_scale = &log_scale;
    }
    return p;
  }

  std::string name() const {
    static const char* const scales[] = {"", " one", " each", " full"};
    return std::string(" ") + kLikelihoodNames[likelihood()] + scales[static_cast<int>(scale_of)] +
           (has_bias ? " bias" : "") + " D=" + std::to_string(size);
  }
};

// A shared scale's gradient, summed over the calls of a kernel.
class ScaleSum {
 public:
  explicit ScaleSum(int64_t size, bool wanted)
      : total_(static_cast<size_t>(wanted ? whole_blocks(size) : 0), 0.0) {}

  template <class F>
  void call(F kernel) {
    if (total_.empty()) return kernel(static_cast<double*>(nullptr));
    std::vector<double> part(total_.size(), 0.0);
    kernel(part.data());
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < part.size(); ++i) total_[i] += part[i];
  }
  std::vector<double> first(int64_t n) const {
    return {total_.begin(), total_.begin() + std::min(n, static_cast<int64_t>(total_.size()))};
  }

 private:
  std::vector<double> total_;
  std::mutex mutex_;
};

// The gradients weight(row) · ∂ log p, in the order params, full scale, shared scale.
template <class T, class F>
std::vector<Expected> expected_gradients(const LogWeights<T>& c, F weight) {
  std::vector<Expected> out(3);
  std::vector<double> sum(static_cast<size_t>(c.size)), terms(static_cast<size_t>(c.size));
  for (int64_t row = 0; row < c.rows(); ++row) {
    const double w = weight(row);
    for (int64_t e = 0; e < c.size; ++e) {
      const auto v = c.element(row, e);
      out[0].add<T>(w * v.d_param, std::abs(w) * v.d_param_terms);
      if (c.scale_of == ScaleOf::kFull) {
        out[1].add<T>(w * v.d_scale, std::abs(w) * v.d_scale_terms);
      }
      sum[static_cast<size_t>(e)] += w * v.d_scale;
      terms[static_cast<size_t>(e)] += std::abs(w) * v.d_scale_terms;
    }
  }
  if (c.kind() == ScaleKind::kShared) {
    for (size_t e = 0; e < sum.size(); ++e) out[2].add<accumulate_t<T>>(sum[e], terms[e]);
  }
  return out;
}

template <class T>
void add_log_weights(const LogWeights<T>& c, std::vector<Case>& cases) {
  using A = accumulate_t<T>;
  constexpr int t = TypeOf<T>::index;
  Expected log_w;
  for (int64_t row = 0; row < c.rows(); ++row) {
    const auto [sum, terms] = c.log_weight(row);
    log_w.add<A>(sum, terms);
  }
  cases.push_back({"log_weights" + c.name(),
                   [c](const Kernels& k, const Parallel& parallel) {
                     auto out = unset<A>(c.rows());
                     LogWeightParams p = c.forward();
                     p.log_w = out.data();
                     parallel(c.rows(), [&](int64_t i, int64_t j) {
                       k.log_weights[c.likelihood()][t](p, c.kind(), i, j);
                     });
                     return std::vector<Output>{output("log_w", out)};
                   },
                   {log_w}});
  // As linear_log_weights calls it: params hold a tile of rows, the other tensors all of them.
  Expected tile;
  const int64_t first = c.samples + 2, rows = 2 * c.samples + 3;
  tile.values.assign(log_w.values.begin() + first, log_w.values.begin() + first + rows);
  tile.tolerance.assign(log_w.tolerance.begin() + first, log_w.tolerance.begin() + first + rows);
  cases.push_back({"log_weights of a tile" + c.name(),
                   [c, first, rows](const Kernels& k, const Parallel& parallel) {
                     auto out = unset<A>(c.rows());
                     const std::vector<T> held(c.params.begin() + first * c.size,
                                               c.params.begin() + (first + rows) * c.size);
                     LogWeightParams p = c.forward();
                     p.params = held.data();
                     p.first_row = first;
                     p.log_w = out.data();
                     std::vector<T> scale;
                     if (c.scale_of == ScaleOf::kFull) {
                       scale.assign(c.full_scale.begin() + first * c.size,
                                    c.full_scale.begin() + (first + rows) * c.size);
                       p.scale = scale.data();
                     }
                     parallel(rows, [&](int64_t i, int64_t j) {
                       k.log_weights[c.likelihood()][t](p, c.kind(), first + i, first + j);
                     });
                     const std::vector<A> written(out.begin() + first, out.begin() + first + rows);
                     return std::vector<Output>{output("log_w", written)};
                   },
                   {tile}});

  const auto backward = [c](bool in_place) {
    return [c, in_place](const Kernels& k, const Parallel& parallel) {
      auto d_params = in_place ? c.params : unset<T>(c.rows() * c.size);
      auto d_scale = unset<T>(static_cast<int64_t>(c.full_scale.size()));
      ScaleSum sum(c.size, c.kind() == ScaleKind::kShared);
      LogWeightGradParams p = c.backward();
      if (in_place) p.params = d_params.data();
      p.grad_params = d_params.data();
      p.grad_scale = d_scale.data();
      parallel(c.rows(), [&](int64_t i, int64_t j) {
        sum.call([&](double* out) {
          k.log_weights_backward[c.likelihood()][t](p, c.kind(), out, i, j);
        });
      });
      return std::vector<Output>{output("params", d_params), output("scale", d_scale),
                                 output("shared scale", sum.first(c.size), true)};
    };
  };
  const auto gradients = expected_gradients(
      c, [&](int64_t row) { return static_cast<double>(c.grad[static_cast<size_t>(row)]); });
  cases.push_back({"log_weights_backward" + c.name(), backward(false), gradients});
  cases.push_back({"log_weights_backward in place" + c.name(), backward(true), gradients});
}

// The fused loss, over rows n or in its three steps.
template <class T>
struct Fused {
  std::vector<accumulate_t<T>> log_w, bound;
  std::vector<T> params, scale;
  ScaleSum sum;
  IwaeParams p;

  Fused(const LogWeights<T>& c, bool in_place)
      : log_w(unset<accumulate_t<T>>(c.rows())),
        bound(unset<accumulate_t<T>>(c.copies * c.examples)),
        params(in_place ? c.params : unset<T>(c.rows() * c.size)),
        scale(unset<T>(static_cast<int64_t>(c.full_scale.size()))),
        sum(c.size, c.kind() == ScaleKind::kShared),
        p(c.fused()) {
    if (in_place) p.params = params.data();
    p.grad_params = params.data();
    p.grad_scale = scale.data();
    p.log_w = log_w.data();
    p.bound = bound.data();
  }
  std::vector<Output> outputs(int64_t size) const {
    return {output("bound", bound), output("weights", log_w), output("params", params),
            output("scale", scale), output("shared scale", sum.first(size), true)};
  }
};

template <class T>
void add_iwae(const LogWeights<T>& c, std::vector<Case>& cases) {
  constexpr int t = TypeOf<T>::index;
  // The oracle's weights; the error of a log-weight is a relative one of its weight.
  const int64_t n_rows = c.copies * c.examples;
  Expected bound, weights;
  std::vector<double> w(static_cast<size_t>(c.rows())), error(static_cast<size_t>(n_rows));
  for (int64_t n = 0; n < n_rows; ++n) {
    double max = -HUGE_VAL, total = 0, largest = 0;
    for (int64_t k = 0; k < c.samples; ++k) {
      const int64_t row = n * c.samples + k;
      const auto [sum, terms] = c.log_weight(row);
      w[static_cast<size_t>(row)] = sum;
      max = std::max(max, sum);
      largest = std::max(largest, terms);
    }
    for (int64_t k = 0; k < c.samples; ++k) {
      total += std::exp(w[static_cast<size_t>(n * c.samples + k)] - max);
    }
    bound.add<accumulate_t<T>>(max + std::log(total / static_cast<double>(c.samples)), largest + 1);
    error[static_cast<size_t>(n)] = 2 * largest + 4;
    for (int64_t k = 0; k < c.samples; ++k) {
      double& v = w[static_cast<size_t>(n * c.samples + k)];
      v = std::exp(v - max) / total;
      weights.add<accumulate_t<T>>(v, v * error[static_cast<size_t>(n)]);
    }
  }
  auto gradients = expected_gradients(
      c, [&](int64_t row) { return c.multiplier * w[static_cast<size_t>(row)]; });
  // The weights' errors, on top of the derivatives'.
  double worst = 0;
  for (const double e : error) worst = std::max(worst, e);
  for (size_t g = 0; g < 2; ++g) {
    for (size_t i = 0; i < gradients[g].values.size(); ++i) {
      const double row_error = error[i / static_cast<size_t>(c.samples * c.size)];
      gradients[g].tolerance[i] += kRelative<T> * row_error * std::abs(gradients[g].values[i]);
      // A weight below the smallest normal number may be 0; derivatives here are below 2000.
      gradients[g].tolerance[i] += 2000 * TypeOf<accumulate_t<T>>::tiny;
    }
  }
  for (size_t e = 0; e < gradients[2].values.size(); ++e) {
    gradients[2].tolerance[e] *= 1 + worst;  // tolerance / kRelative are its terms
  }
  const std::vector<Expected> expected = {bound, weights, gradients[0], gradients[1], gradients[2]};

  for (const bool in_place : {false, true}) {
    const std::string name = c.name() + (in_place ? " in place" : "");
    cases.push_back(
        {"iwae" + name,
         [c, in_place](const Kernels& k, const Parallel& parallel) {
           Fused<T> f(c, in_place);
           parallel(c.copies * c.examples, [&](int64_t i, int64_t j) {
             f.sum.call([&](double* out) { k.iwae[c.likelihood()][t](f.p, c.kind(), out, i, j); });
           });
           return f.outputs(c.size);
         },
         expected});
    cases.push_back({"iwae in steps" + name,
                     [c, in_place](const Kernels& k, const Parallel& parallel) {
                       Fused<T> f(c, in_place);
                       parallel(c.rows(), [&](int64_t i, int64_t j) {
                         k.iwae_sweep[c.likelihood()][t](f.p, c.kind(), i, j);
                       });
                       parallel(c.copies * c.examples,
                                [&](int64_t i, int64_t j) { k.iwae_normalise[t](f.p, i, j); });
                       parallel(c.rows(), [&](int64_t i, int64_t j) {
                         f.sum.call([&](double* out) {
                           k.iwae_scale[c.likelihood()][t](f.p, c.kind(), out, i, j);
                         });
                       });
                       return f.outputs(c.size);
                     },
                     expected});
  }
}

}  // namespace dvae::test
