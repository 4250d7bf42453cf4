// The cases of noise and of corruptions.
#pragma once

#include "case.h"

namespace dvae::test {

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

}  // namespace dvae::test
