// The cases of latent samples and of mixtures of posteriors.
#pragma once

#include "case.h"

namespace dvae::test {

// --- latent samples ---------------------------------------------------------------------------

template <class T>
struct Latent {
  using A = accumulate_t<T>;
  int64_t copies = 2, examples = 3, samples = 5, size;
  std::vector<T> mean, log_var, z, grad_z;
  std::vector<A> grad_r;

  Latent(int64_t size_in, Random& random) : size(size_in) {
    const int64_t rows = copies * examples;
    mean = random.array<T>(rows * size, -2, 2);
    log_var = random.array<T>(rows * size, -3, 3);
    z = random.array<T>(rows * samples * size, -3, 3);
    grad_z = random.array<T>(rows * samples * size, -1, 1);
    grad_r = random.array<A>(rows * samples, -1, 1);
  }

  LatentParams params() const {
    return latent_params(mean.data(), log_var.data(), copies, examples, samples, size);
  }
  Normal noise(int64_t row, int64_t k, int64_t e) const {
    const auto stream = static_cast<uint32_t>(1 | row / examples << 8);
    return normal_of(kNoise, stream, row % examples, k, e);
  }
};

template <class T>
void add_latents(int64_t size, Random& random, std::vector<Case>& cases) {
  using A = accumulate_t<T>;
  constexpr int t = TypeOf<T>::index;
  const Latent<T> c(size, random);
  const std::string name = " Z=" + std::to_string(size);
  const int64_t rows = c.copies * c.examples;
  Expected z, ratio, ratio_at, dz;
  std::vector<Expected> sampled(6), at(2);  // (mean, log_var) for gradients of z, ratio and both
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < c.samples; ++k) {
      double r = 0, terms = 0, r_at = 0, terms_at = 0;
      for (int64_t e = 0; e < size; ++e) {
        const double m = value(c.mean[static_cast<size_t>(row * size + e)]);
        const double lv = value(c.log_var[static_cast<size_t>(row * size + e)]);
        const Normal n = c.noise(row, k, e);
        const double sigma = std::exp(0.5 * lv);
        const double sample = m + sigma * n.value, largest = std::abs(m) + sigma * n.radius;
        z.add<T>(sample, largest);
        r += 0.5 * (n.value * n.value - sample * sample + lv);
        terms += 0.5 * (n.radius * n.radius + largest * largest + std::abs(lv));
        const auto i = static_cast<size_t>((row * c.samples + k) * size + e);
        const double given = value(c.z[i]), diff = given - m, u = diff * std::exp(-lv);
        r_at += 0.5 * (diff * u - given * given + lv);
        terms_at += 0.5 * (diff * u + given * given + std::abs(lv));
        const double g = static_cast<double>(c.grad_r[static_cast<size_t>(row * c.samples + k)]);
        dz.add<T>(g * (u - given), std::abs(g) * (std::abs(u) + std::abs(given)));
      }
      ratio.add<A>(r, terms);
      ratio_at.add<A>(r_at, terms_at);
    }
    for (int64_t e = 0; e < size; ++e) {
      const double m = value(c.mean[static_cast<size_t>(row * size + e)]);
      const double lv = value(c.log_var[static_cast<size_t>(row * size + e)]);
      const double sigma = std::exp(0.5 * lv);
      for (size_t which = 0; which < 3; ++which) {
        double d_mean = 0, d_lv = 0, mean_terms = 0, lv_terms = 0;
        double at_mean = 0, at_lv = 0, at_mean_terms = 0, at_lv_terms = 0;
        for (int64_t k = 0; k < c.samples; ++k) {
          const auto i = static_cast<size_t>((row * c.samples + k) * size + e);
          const double gr = static_cast<double>(c.grad_r[static_cast<size_t>(row * c.samples + k)]);
          const double gz = which != 1 ? value(c.grad_z[i]) : 0, g = which != 0 ? gr : 0;
          const Normal n = c.noise(row, k, e);
          const double sample = m + sigma * n.value, largest = std::abs(m) + sigma * n.radius;
          const double delta = gz - g * sample;
          const double delta_terms = std::abs(gz) + std::abs(g) * largest;
          d_mean += delta;
          mean_terms += delta_terms;
          d_lv += 0.5 * (delta * sigma * n.value + g);
          lv_terms += 0.5 * (delta_terms * sigma * n.radius + std::abs(g));
          const double diff = value(c.z[i]) - m, u = diff * std::exp(-lv);
          at_mean -= gr * u;
          at_mean_terms += std::abs(gr * u);
          at_lv += 0.5 * gr * (1 - u * diff);
          at_lv_terms += 0.5 * std::abs(gr) * (1 + u * diff);
        }
        sampled[2 * which].add<T>(d_mean, mean_terms);
        sampled[2 * which + 1].add<T>(d_lv, lv_terms);
        if (which == 0) {
          at[0].add<T>(at_mean, at_mean_terms);
          at[1].add<T>(at_lv, at_lv_terms);
        }
      }
    }
  }
  cases.push_back({"sample_latent" + name,
                   [c, rows](const Kernels& k, const Parallel& parallel) {
                     auto out = unset<T>(rows * c.samples * c.size);
                     auto r = unset<A>(rows * c.samples);
                     LatentParams p = c.params();
                     p.z = out.data();
                     p.log_ratio = r.data();
                     parallel(rows * c.samples,
                              [&](int64_t i, int64_t j) { k.sample_latent[t](p, i, j); });
                     return std::vector<Output>{output("z", out), output("log_ratio", r)};
                   },
                   {z, ratio}});
  for (size_t which = 0; which < 3; ++which) {
    static const char* const of[] = {" of z", " of log_ratio", " of both"};
    cases.push_back(
        {"sample_latent_backward" + name + of[which],
         [c, rows, which](const Kernels& k, const Parallel& parallel) {
           auto d_mean = unset<T>(rows * c.size), d_log_var = unset<T>(rows * c.size);
           LatentParams p = c.params();
           p.grad_z = which != 1 ? c.grad_z.data() : nullptr;
           p.grad_log_ratio = which != 0 ? c.grad_r.data() : nullptr;
           p.grad_mean = d_mean.data();
           p.grad_log_var = d_log_var.data();
           parallel(rows, [&](int64_t i, int64_t j) { k.sample_latent_backward[t](p, i, j); });
           return std::vector<Output>{output("mean", d_mean), output("log_var", d_log_var)};
         },
         {sampled[2 * which], sampled[2 * which + 1]}});
  }
  cases.push_back({"latent_log_ratio" + name,
                   [c, rows](const Kernels& k, const Parallel& parallel) {
                     auto r = unset<A>(rows * c.samples);
                     LatentParams p = c.params();
                     p.z = const_cast<T*>(c.z.data());
                     p.log_ratio = r.data();
                     parallel(rows * c.samples,
                              [&](int64_t i, int64_t j) { k.latent_log_ratio[t](p, i, j); });
                     return std::vector<Output>{output("log_ratio", r)};
                   },
                   {ratio_at}});
  cases.push_back(
      {"latent_log_ratio_backward" + name,
       [c, rows](const Kernels& k, const Parallel& parallel) {
         auto d_z = unset<T>(rows * c.samples * c.size);
         auto d_mean = unset<T>(rows * c.size), d_log_var = unset<T>(rows * c.size);
         LatentParams p = c.params();
         p.z = const_cast<T*>(c.z.data());
         p.grad_log_ratio = c.grad_r.data();
         p.grad_z_out = d_z.data();
         p.grad_mean = d_mean.data();
         p.grad_log_var = d_log_var.data();
         parallel(rows, [&](int64_t i, int64_t j) { k.latent_log_ratio_backward[t](p, i, j); });
         return std::vector<Output>{output("z", d_z), output("mean", d_mean),
                                    output("log_var", d_log_var)};
       },
       {dz, at[0], at[1]}});
}

// --- mixture of posteriors --------------------------------------------------------------------

template <class T>
struct Mixture {
  using A = accumulate_t<T>;
  int64_t components, examples = 3, samples = 5, size;
  std::vector<T> mean, log_var, z;
  std::vector<A> weights, grad;

  Mixture(int64_t components_in, int64_t size_in, Random& random)
      : components(components_in), size(size_in) {
    // Components near each other, so that no one of them has all of the density.
    const double apart = 1 / std::sqrt(static_cast<double>(size));
    const auto near = [&](double range) {
      const auto base = random.array<T>(examples * size, -range, range);
      auto all = random.array<T>(components * examples * size, -apart, apart);
      for (size_t i = 0; i < all.size(); ++i) {
        all[i] = make<T>(value(all[i]) + value(base[i % base.size()]));
      }
      return all;
    };
    mean = near(2);
    log_var = near(3);
    z = random.array<T>(examples * samples * size, -3, 3);
    weights = random.array<A>(examples * samples * components, 0, 1);
    for (size_t i = 0; i < weights.size(); i += 7) weights[i] = 0;
    grad = random.array<A>(examples * samples, -1, 1);
  }
  MixtureParams params() const {
    return mixture_params(z.data(), mean.data(), log_var.data(), components, examples, samples,
                          size);
  }
  // Of row r = (example, sample) and component m; element e, example · size + e of a component.
  double at_z(int64_t r, int64_t e) const { return value(z[static_cast<size_t>(r * size + e)]); }
  double at(const std::vector<T>& v, int64_t m, int64_t r, int64_t e) const {
    return value(v[static_cast<size_t>((m * examples + r / samples) * size + e)]);
  }
  double gradient(int64_t m, int64_t r) const {
    return static_cast<double>(grad[static_cast<size_t>(r)]) *
           static_cast<double>(weights[static_cast<size_t>(r * components + m)]);
  }
};

template <class T>
void add_mixture(int64_t components, int64_t size, Random& random, std::vector<Case>& cases) {
  using A = accumulate_t<T>;
  constexpr int t = TypeOf<T>::index;
  const Mixture<T> c(components, size, random);
  const std::string name = " M=" + std::to_string(components) + " Z=" + std::to_string(size);
  const int64_t rows = c.examples * c.samples;
  Expected ratio, weights, dz, d_mean, d_log_var;
  std::vector<double> v(static_cast<size_t>(components)), terms(v.size());
  for (int64_t r = 0; r < rows; ++r) {
    double max = -HUGE_VAL, total = 0, mean_terms = 0;
    for (int64_t m = 0; m < components; ++m) {
      double up = 0, down = 0;
      for (int64_t e = 0; e < size; ++e) {
        const double z = c.at_z(r, e), diff = z - c.at(c.mean, m, r, e);
        const double lv = c.at(c.log_var, m, r, e);
        up += 0.5 * (diff * diff * std::exp(-lv) + std::max(lv, 0.0));
        down += 0.5 * (z * z + std::max(-lv, 0.0));
      }
      v[static_cast<size_t>(m)] = down - up;
      terms[static_cast<size_t>(m)] = down + up;
      max = std::max(max, down - up);
    }
    for (const double x : v) total += std::exp(x - max);
    for (size_t m = 0; m < v.size(); ++m) mean_terms += std::exp(v[m] - max) / total * terms[m];
    const double bound = max + std::log(total / static_cast<double>(components));
    ratio.add<A>(-bound, mean_terms + std::abs(bound - max) + 1);
    for (size_t m = 0; m < v.size(); ++m) {
      const double w = std::exp(v[m] - max) / total;
      weights.add<A>(w, w * (1 + max - v[m] + terms[m] + mean_terms));
    }
    for (int64_t e = 0; e < size; ++e) {
      double sum = 0, sum_terms = 0;
      for (int64_t m = 0; m < components; ++m) {
        const double g = c.gradient(m, r), z = c.at_z(r, e);
        const double u = (z - c.at(c.mean, m, r, e)) * std::exp(-c.at(c.log_var, m, r, e));
        sum += g * (u - z);
        sum_terms += std::abs(g) * (std::abs(u) + std::abs(z));
      }
      dz.add<T>(sum, sum_terms);
    }
  }
  for (int64_t m = 0; m < components; ++m) {
    for (int64_t b = 0; b < c.examples; ++b) {
      for (int64_t e = 0; e < size; ++e) {
        double mean = 0, mean_terms = 0, log_var = 0, log_var_terms = 0;
        for (int64_t r = b * c.samples; r < (b + 1) * c.samples; ++r) {
          const double g = c.gradient(m, r), diff = c.at_z(r, e) - c.at(c.mean, m, r, e);
          const double u = diff * std::exp(-c.at(c.log_var, m, r, e));
          mean -= g * u;
          mean_terms += std::abs(g * u);
          log_var += 0.5 * g * (1 - u * diff);
          log_var_terms += 0.5 * std::abs(g) * (1 + u * diff);
        }
        d_mean.add<T>(mean, mean_terms);
        d_log_var.add<T>(log_var, log_var_terms);
      }
    }
  }
  cases.push_back({"mixture_log_ratio" + name,
                   [c, rows](const Kernels& k, const Parallel& parallel) {
                     auto r = unset<A>(rows), w = unset<A>(rows * c.components);
                     MixtureParams p = c.params();
                     p.log_ratio = r.data();
                     p.weights = w.data();
                     parallel(rows, [&](int64_t i, int64_t j) { k.mixture_log_ratio[t](p, i, j); });
                     return std::vector<Output>{output("log_ratio", r), output("weights", w)};
                   },
                   {ratio, weights}});
  cases.push_back({"mixture_log_ratio_backward" + name,
                   [c](const Kernels& k, const Parallel& parallel) {
                     auto z = unset<T>(static_cast<int64_t>(c.z.size()));
                     auto mean = unset<T>(static_cast<int64_t>(c.mean.size())), log_var = mean;
                     MixtureParams p = c.params();
                     p.weights = const_cast<A*>(c.weights.data());
                     p.grad = c.grad.data();
                     p.grad_z = z.data();
                     p.grad_mean = mean.data();
                     p.grad_log_var = log_var.data();
                     parallel(c.examples, [&](int64_t i, int64_t j) {
                       k.mixture_log_ratio_backward[t](p, i, j);
                     });
                     return std::vector<Output>{output("z", z), output("mean", mean),
                                                output("log_var", log_var)};
                   },
                   {dz, d_mean, d_log_var}});
}

}  // namespace dvae::test
