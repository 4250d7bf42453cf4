// Every kernel of the table as a list of cases: inputs, how to run it, and what float64 says.
//
// The oracles are plain loops over the formulas of DESIGN's operators, written without csrc/core,
// but for the random words, which test_noise.cpp pins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/corruptions.h"
#include "core/half.h"
#include "core/likelihoods.h"
#include "core/noise.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "params.h"
#include "types.h"

namespace dvae::test {

using cpu::Kernels;

inline const Kernels& kernels_of(cpu::Isa isa) {
  switch (isa) {
    case cpu::Isa::kAvx512:
      return *cpu::kernels_avx512();
    case cpu::Isa::kAvx2:
      return *cpu::kernels_avx2();
    default:
      return *cpu::kernels_base();
  }
}

// Of the sum of a result's absolute terms.
template <class T>
constexpr double kRelative = sizeof(T) == 8 ? 1e-14 : 2e-6;

// --- inputs -----------------------------------------------------------------------------------

class Random {
 public:
  explicit Random(uint64_t seed) : generator_(seed) {}
  double uniform(double low = 0, double high = 1) {
    return low + (high - low) * (static_cast<double>(generator_() >> 11) * 0x1p-53);
  }

  // n values, rounded to T.
  template <class T>
  std::vector<T> array(int64_t n, double low, double high) {
    std::vector<T> out(static_cast<size_t>(n));
    for (T& v : out) v = make<T>(uniform(low, high));
    return out;
  }
  // Data in [0, 1], often exactly 0 or 1.
  template <class T>
  std::vector<T> data(int64_t n) {
    std::vector<T> out(static_cast<size_t>(n));
    for (T& v : out) v = make<T>(std::clamp(uniform(-0.5, 1.5), 0.0, 1.0));
    return out;
  }

 private:
  std::mt19937_64 generator_;
};

inline int64_t whole_blocks(int64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

// --- running ----------------------------------------------------------------------------------

using Body = std::function<void(int64_t begin, int64_t end)>;
// Calls the body on ranges that make up [0, range).
using Parallel = std::function<void(int64_t range, const Body&)>;

struct Output {
  std::string name;
  std::vector<unsigned char> bytes;
  std::vector<double> values;
  bool ordered;  // a sum over calls: its rounding depends on the split
};

template <class T>
Output output(const char* name, const std::vector<T>& v, bool ordered = false) {
  Output o{name, {}, {}, ordered};
  o.bytes.resize(v.size() * sizeof(T));
  if (!v.empty()) std::memcpy(o.bytes.data(), v.data(), o.bytes.size());
  for (const T& x : v) o.values.push_back(value(x));
  return o;
}

// NaN of every type, so that what a kernel leaves out shows.
template <class T>
std::vector<T> unset(int64_t n) {
  return std::vector<T>(static_cast<size_t>(n), make<T>(std::nan("")));
}

// What an output should be. Exact: bit for bit the same on every ISA.
struct Expected {
  std::vector<double> values, tolerance;
  bool exact = false;

  // `terms`: the sum of the absolute terms; T: the type it is stored in.
  template <class T>
  void add(double v, double terms) {
    values.push_back(v);
    tolerance.push_back(kRelative<T> * terms + 0.5 * TypeOf<T>::epsilon * (1 + 1e-3) * std::abs(v) +
                        TypeOf<T>::tiny);
  }
};

struct Case {
  std::string name;
  std::function<std::vector<Output>(const Kernels&, const Parallel&)> run;
  std::vector<Expected> expected;
};

// --- noise ------------------------------------------------------------------------------------

struct Normal {
  double value, radius;
};

inline uint32_t word_of(const NoiseParams& n, uint32_t stream, int64_t example, int64_t sample,
                        int64_t element) {
  uint32_t w[4];
  noise_lane(element / kBlock, static_cast<int>(element % kLanes),
             n.first_sample + static_cast<uint32_t>(sample),
             n.first_example + static_cast<uint32_t>(example), stream, key_from_seed(*n.seed), w[0],
             w[1], w[2], w[3]);
  return w[element % kBlock / kLanes];
}

inline Normal normal_of(const NoiseParams& n, uint32_t stream, int64_t example, int64_t sample,
                        int64_t element) {
  const bool second = element / kLanes % 2 == 1;
  const int64_t first = second ? element - kLanes : element;
  const uint32_t w0 = word_of(n, stream, example, sample, first);
  const uint32_t w1 = word_of(n, stream, example, sample, first + kLanes);
  const double radius = std::sqrt(-2 * std::log((w0 + 0.5) * 0x1p-32));
  const double angle = 2 * 3.14159265358979323846 * (w1 * 0x1p-32);
  return {radius * (second ? std::sin(angle) : std::cos(angle)), radius};
}

// --- corruption -------------------------------------------------------------------------------

template <class T>
struct Corruption {
  using A = accumulate_t<T>;
  int64_t copies = 3, examples = 4, size;
  CorruptionKind kind;
  std::vector<T> x;
  std::vector<int32_t> hit, one;
  std::vector<A> std;
  int64_t stride;

  Corruption(CorruptionKind kind_in, int64_t size_in, bool shared, Random& random)
      : size(size_in), kind(kind_in), stride(shared ? 0 : kBlock) {
    const int64_t n = shared ? kBlock : whole_blocks(size);
    x = random.data<T>(copies * examples * size);
    for (int64_t i = 0; i < n; ++i) {
      const bool fresh = !shared || i == 0;
      const float rate = static_cast<float>(random.uniform());
      hit.push_back(fresh ? threshold(rate) : hit[0]);
      one.push_back(fresh ? threshold(rate * static_cast<float>(random.uniform())) : one[0]);
      std.push_back(fresh ? static_cast<A>(random.uniform(0.1, 2)) : std[0]);
    }
  }

  cpu::CorruptTables params(const void* in, void* out) const {
    // In the place of rate, salt and std, which the kernels do not read, are their tables.
    return {{in, out, nullptr, nullptr, nullptr, 0, 0, copies, examples, size, kind, kNoise},
            hit.data(),
            one.data(),
            std.data(),
            stride};
  }
  size_t table(int64_t e) const { return static_cast<size_t>(stride == 0 ? 0 : e); }
  int32_t uniform(int64_t copy, int64_t example, int64_t e) const {
    return static_cast<int32_t>(word_of(kNoise, 0, example, copy, e) >> 8);
  }
  // The factor of the gradient with respect to x.
  double derivative(int64_t copy, int64_t example, int64_t e) const {
    if (kind == CorruptionKind::kIdentity || kind == CorruptionKind::kAdditiveGaussian) return 1;
    if (uniform(copy, example, e) >= hit[table(e)]) return 1;
    return kind == CorruptionKind::kBitFlip ? -1 : 0;
  }
};

inline const char* name_of(CorruptionKind kind) { return kCorruptionNames[static_cast<int>(kind)]; }

template <class T>
void add_corruptions(int64_t d, Random& random, std::vector<Case>& cases) {
  using A = accumulate_t<T>;
  constexpr int t = TypeOf<T>::index;
  for (int index = 0; index < 10; ++index) {
    const auto kind = static_cast<CorruptionKind>(index / 2);
    const Corruption<T> c(kind, d, index % 2 == 0, random);
    const std::string name = std::string(name_of(kind)) + (index % 2 == 0 ? " one" : " each") +
                             " D=" + std::to_string(d);
    const bool gaussian = kind == CorruptionKind::kAdditiveGaussian;
    Expected forward, backward, std_gradient;
    forward.exact = !gaussian;
    for (int64_t m = 0; m < c.copies; ++m) {
      for (int64_t b = 0; b < c.examples; ++b) {
        for (int64_t e = 0; e < d; ++e) {
          const double x = value(c.x[static_cast<size_t>(b * d + e)]);
          if (gaussian) {
            const Normal n = normal_of(kNoise, 0, b, m, e);
            const double s = static_cast<double>(c.std[c.table(e)]);
            forward.add<T>(x + s * n.value, std::abs(x) + s * n.radius);
            continue;
          }
          const int32_t u = c.uniform(m, b, e);
          double out = x;
          if (kind != CorruptionKind::kIdentity && u < c.hit[c.table(e)]) {
            const bool salt = kind == CorruptionKind::kSaltAndPepper && u < c.one[c.table(e)];
            out = kind == CorruptionKind::kBitFlip ? 1 - x : salt ? 1 : 0;
          }
          forward.add<T>(out, 0);
        }
      }
    }
    for (int64_t b = 0; b < c.examples; ++b) {
      for (int64_t e = 0; e < d; ++e) {
        double sum = 0, terms = 0;
        for (int64_t m = 0; m < c.copies; ++m) {
          const double g = value(c.x[static_cast<size_t>((m * c.examples + b) * d + e)]);
          sum += g * c.derivative(m, b, e);
          terms += std::abs(g);
        }
        backward.add<T>(sum, terms);
      }
    }
    cases.push_back({"corrupt " + name,
                     [c](const Kernels& k, const Parallel& parallel) {
                       auto out = unset<T>(c.copies * c.examples * c.size);
                       const cpu::CorruptTables p = c.params(c.x.data(), out.data());
                       parallel(c.copies * c.examples,
                                [&](int64_t i, int64_t j) { k.corrupt[t](p, i, j); });
                       return std::vector<Output>{output("out", out)};
                     },
                     {forward}});
    cases.push_back({"corrupt_backward " + name,
                     [c](const Kernels& k, const Parallel& parallel) {
                       auto out = unset<T>(c.examples * c.size);
                       const cpu::CorruptTables p = c.params(c.x.data(), out.data());
                       parallel(c.examples,
                                [&](int64_t i, int64_t j) { k.corrupt_backward[t](p, i, j); });
                       return std::vector<Output>{output("grad", out)};
                     },
                     {backward}});
    if (!gaussian) continue;
    for (int64_t e = 0; e < whole_blocks(d); ++e) {
      double sum = 0, terms = 0;
      for (int64_t m = 0; m < c.copies && e < d; ++m) {
        for (int64_t b = 0; b < c.examples; ++b) {
          const double g = value(c.x[static_cast<size_t>((m * c.examples + b) * d + e)]);
          const Normal n = normal_of(kNoise, 0, b, m, e);
          sum += g * n.value;
          terms += std::abs(g) * n.radius;
        }
      }
      std_gradient.add<A>(sum, terms);
    }
    cases.push_back({"corrupt_backward_std " + name,
                     [c](const Kernels& k, const Parallel& parallel) {
                       auto out = unset<double>(whole_blocks(c.size));
                       const cpu::CorruptTables p = c.params(c.x.data(), nullptr);
                       parallel(whole_blocks(c.size) / kBlock, [&](int64_t i, int64_t j) {
                         k.corrupt_backward_std[t](p, out.data(), i, j);
                       });
                       return std::vector<Output>{output("grad", out)};
                     },
                     {std_gradient}});
  }
}

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
    const double ratio = static_cast<double>(c.log_ratio[static_cast<size_t>(row)]);
    double sum = ratio, terms = std::abs(ratio);
    for (int64_t e = 0; e < c.size; ++e) {
      const auto v = c.element(row, e);
      sum += v.density;
      terms += v.terms;
    }
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
      const double ratio = static_cast<double>(c.log_ratio[static_cast<size_t>(row)]);
      double sum = ratio, terms = std::abs(ratio);
      for (int64_t e = 0; e < c.size; ++e) {
        const auto v = c.element(row, e);
        sum += v.density;
        terms += v.terms;
      }
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
        LikelihoodKind::kPoisson, LikelihoodKind::kLaplace, LikelihoodKind::kContinuousBernoulli}) {
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
