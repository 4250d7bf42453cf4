// Cases of the kernels of one-hot variables.
#pragma once

#include "case.h"

namespace dvae::test {

// One-hot data, logits of which some classes are out of the question, and a mask of variables.
template <class T>
struct OneHot {
  int64_t classes, variables, examples = 3, copies = 2, samples = 5;
  int64_t size = classes * variables, rows = examples * copies * samples;
  std::vector<T> logits, x, ratio, grad;
  std::vector<uint8_t> seen;

  OneHot(int64_t classes_in, int64_t variables_in, Random& random)
      : classes(classes_in),
        variables(variables_in),
        logits(random.array<T>(rows * size, -9, 9)),
        x(static_cast<size_t>(examples * size), T(0)),
        ratio(random.array<T>(rows, -1, 1)),
        grad(random.array<T>(rows, -1, 1)),
        seen(static_cast<size_t>(examples * size)) {
    grad[1] = T(0);
    for (T& l : logits) {
      if (random.uniform() < 0.02) l = T(-HUGE_VAL);
    }
    for (int64_t v = 0; v < examples * variables; ++v) {
      const auto chosen = static_cast<int64_t>(random.uniform(0, static_cast<double>(classes)));
      x[static_cast<size_t>(v * classes + chosen)] = T(1);
      const bool known = random.uniform() < 0.7;
      for (int64_t c = 0; c < classes; ++c) seen[static_cast<size_t>(v * classes + c)] = known;
      for (int64_t row = 0; row < rows; ++row) {  // no class that is chosen is out of the question
        if (row / samples % examples == v / variables) {
          logits[static_cast<size_t>((row * variables + v % variables) * classes + chosen)] = T(1);
        }
      }
    }
  }

  CategoricalParams params(bool masked) const {
    auto p = sized<CategoricalParams>(examples, samples, size);
    p.rows = examples * copies;
    p.params = logits.data();
    p.x = x.data();
    p.classes = classes;
    p.log_ratio = ratio.data();
    if (masked) {
      p.seen = seen.data();
      p.seen_examples = examples;
    }
    return p;
  }
};

template <class T>
void add_categorical(int64_t classes, int64_t variables, Random& random, std::vector<Case>& cases) {
  constexpr int t = TypeOf<T>::index;
  const OneHot<T> of(classes, variables, random);
  for (const bool masked : {false, true}) {
    Expected log_w, gradient;
    for (int64_t row = 0; row < of.rows; ++row) {
      double sum = value(of.ratio[static_cast<size_t>(row)]), terms = std::abs(sum) + 1;
      const int64_t example = row / of.samples % of.examples;
      const double g = value(of.grad[static_cast<size_t>(row)]);
      for (int64_t v = 0; v < variables; ++v) {
        const auto l = of.logits.begin() + (row * variables + v) * classes;
        const auto at = static_cast<size_t>((example * variables + v) * classes);
        const bool known = !masked || of.seen[at] != 0;
        double normaliser = 0;
        for (int64_t c = 0; c < classes; ++c) normaliser += std::exp(value(l[c]));
        for (int64_t c = 0; c < classes; ++c) {
          const double x = value(of.x[at + static_cast<size_t>(c)]);
          const double d = known ? g * (x - std::exp(value(l[c])) / normaliser) : 0;
          gradient.add<T>(d, 4 * std::abs(g));
          if (x == 0 || !known) continue;
          sum += value(l[c]) - std::log(normaliser);
          terms += std::abs(value(l[c])) + 10 + std::abs(std::log(normaliser));
        }
      }
      log_w.add<T>(sum, terms);
    }
    const std::string name = " C=" + std::to_string(classes) + " of " + std::to_string(variables) +
                             (masked ? " masked" : "");
    cases.push_back({"categorical" + name,
                     [=](const Kernels& k, const Parallel& parallel) {
                       auto out = unset<T>(of.rows);
                       parallel(of.rows, [&](int64_t i, int64_t j) {
                         auto data = unset<T>(cpu::categorical_room(of.size, classes));
                         auto p = of.params(masked);
                         p.log_w = out.data();
                         p.data = data.data();
                         k.categorical[t](p, i, j);
                       });
                       return std::vector<Output>{output("log_w", out)};
                     },
                     {log_w}});
    cases.push_back({"categorical_backward" + name,
                     [=](const Kernels& k, const Parallel& parallel) {
                       auto out = unset<T>(of.rows * of.size);
                       parallel(of.rows, [&](int64_t i, int64_t j) {
                         auto data = unset<T>(cpu::categorical_room(of.size, classes));
                         auto p = of.params(masked);
                         p.grad = of.grad.data();
                         p.grad_params = out.data();
                         p.data = data.data();
                         k.categorical_backward[t](p, i, j);
                       });
                       return std::vector<Output>{output("logits", out)};
                     },
                     {gradient}});
  }
}

}  // namespace dvae::test
