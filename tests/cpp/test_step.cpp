// A training step in one pass: float against double, whatever the workers, and within its memory.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "cpu/step.h"

namespace dvae::cpu {
namespace {

struct Sizes {
  int64_t examples, copies, samples, data, latent;
  std::vector<int64_t> hidden;
};

// A network's numbers, and of exactly the room there must be its gradients, which begin as NaN, or
// Adam's means and squares.
template <class T>
struct Network {
  std::vector<std::vector<T>> held;
  std::vector<StepLayer> layers;

  Network(const std::vector<int64_t>& widths, bool updated) {
    const T start = static_cast<T>(updated ? 0.01 : NAN);
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    for (size_t i = 0; i + 1 < widths.size(); ++i) {
      const auto inputs = static_cast<size_t>(widths[i]),
                 outputs = static_cast<size_t>(widths[i + 1]);
      std::vector<T> weight(inputs * outputs), bias(outputs);
      for (T& w : weight)
        w = static_cast<T>(normal(random) / std::sqrt(static_cast<double>(inputs)));
      for (T& b : bias) b = static_cast<T>(normal(random) / 4);
      held.push_back(std::move(weight));
      held.push_back(std::move(bias));
      for (int more = 0; more < 2; ++more) {
        held.emplace_back(inputs * outputs, start);
        held.emplace_back(outputs, start);
      }
    }
    for (size_t i = 0; i + 1 < widths.size(); ++i) {
      const auto at = [&](size_t which) { return held[6 * i + which].data(); };
      StepLayer layer{};
      layer.weight = at(0);
      layer.bias = at(1);
      if (updated) {
        layer.of_weight = {at(0), at(2), at(4)};
        layer.of_bias = {at(1), at(3), at(5)};
      } else {
        layer.grad_weight = at(2);
        layer.grad_bias = at(3);
      }
      layer.inputs = widths[i];
      layer.outputs = widths[i + 1];
      layers.push_back(layer);
    }
  }
};

// The loss, and gradients; or of an update weights, means and squares.
template <class T>
std::vector<double> step(const Sizes& s, bool outside, int64_t workers,
                         const Bf16Products* bf16 = nullptr, const AdamParams* update = nullptr) {
  std::vector<int64_t> encoder{s.data}, decoder{s.latent};
  encoder.insert(encoder.end(), s.hidden.begin(), s.hidden.end());
  decoder.insert(decoder.end(), s.hidden.rbegin(), s.hidden.rend());
  encoder.push_back(2 * s.latent);
  decoder.push_back(s.data);
  Network<T> q(encoder, update != nullptr), p(decoder, update != nullptr);
  std::vector<T> x(static_cast<size_t>(s.examples * s.data));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(i % 3 == 0);
  const int64_t seed = 3;
  StepParams params{};
  params.encoder = q.layers;
  params.decoder = p.layers;
  params.activation = Activation::kSoftplus;
  params.dtype = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
  params.x = x.data();
  params.copies = s.copies;
  params.examples = s.examples;
  params.samples = s.samples;
  params.data = s.data;
  params.latent = s.latent;
  params.noise = {&seed, 0, 0};
  params.likelihood = LikelihoodKind::kBernoulli;
  params.outside = outside;
  params.kl_weight = 1;
  params.bf16 = bf16;
  params.update = update;

  std::vector<double> out;
  {
    Step one(params, workers);
    const auto each = [&](int64_t n, const auto& body) {
      std::vector<std::thread> threads;
      for (int64_t w = 0; w < workers; ++w) {
        threads.emplace_back([&, w] { body(n * w / workers, n * (w + 1) / workers); });
      }
      for (std::thread& t : threads) t.join();
    };
    each(one.panels(), [&](int64_t begin, int64_t end) { one.pack(begin, end); });
    each(workers, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) one.run(begin);
    });
    each(workers, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) one.reduce(begin);
    });
    out.push_back(one.finish());
  }
  for (const Network<T>* network : {&q, &p}) {
    for (size_t i = 0; i < network->held.size(); ++i) {
      if (update == nullptr && i % 6 != 2 && i % 6 != 3) continue;
      for (const T value : network->held[i]) out.push_back(static_cast<double>(value));
    }
  }
  return out;
}

const Sizes kSizes[] = {
    {1, 1, 1, 1, 1, {}},          {7, 2, 3, 19, 3, {9, 6}},      {67, 1, 2, 33, 2, {40}},
    {3, 1, 131, 65, 4, {70, 17}}, {130, 2, 1, 49, 16, {32, 31}},
};

TEST(Step, FloatIsDouble) {
  for (const Sizes& s : kSizes) {
    for (const bool outside : {false, true}) {
      const std::vector<double> expected = step<double>(s, outside, 1);
      const std::vector<double> got = step<float>(s, outside, 1);
      ASSERT_EQ(got.size(), expected.size());
      double largest = 0;
      for (const double e : expected) largest = std::max(largest, std::abs(e));
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], expected[i], 2e-5 * largest) << s.examples << ' ' << i;
      }
    }
  }
}

// Of all gradients by the mean, at β₁ = 0, whether made for all rows at the end (one sample, few
// rows a worker) or added up.
TEST(Step, UpdateIsAdamOfTheGradients) {
  const AdamParams adam{0.1, 0, 0.5, 2, 1e-3, 1, 0, 1, false};
  const Sizes wide{70, 1, 1, 300, 9, {120, 90}};
  std::vector<Sizes> all(std::begin(kSizes), std::end(kSizes));
  all.push_back(wide);
  for (const Sizes& s : all) {
    for (const int64_t workers : {1, 2, 3}) {
      if (workers > s.examples) continue;
      const std::vector<double> gradients = step<double>(s, false, workers);
      const std::vector<double> updated = step<double>(s, false, workers, nullptr, &adam);
      const std::vector<double> single = step<float>(s, false, workers, nullptr, &adam);
      EXPECT_NEAR(updated[0], gradients[0], 1e-9 * std::abs(gradients[0]));
      std::vector<int64_t> widths{s.data};
      widths.insert(widths.end(), s.hidden.begin(), s.hidden.end());
      widths.push_back(2 * s.latent);
      widths.push_back(s.latent);
      widths.insert(widths.end(), s.hidden.rbegin(), s.hidden.rend());
      widths.push_back(s.data);
      size_t gradient = 1, at = 1;
      for (size_t i = 0; i + 1 < widths.size(); ++i) {
        if (i == s.hidden.size() + 1) continue;  // from one network to the other
        const auto size = static_cast<size_t>((widths[i] + 1) * widths[i + 1]);
        for (size_t j = 0; j < size; ++j) {
          const double g = gradients[gradient + j], square = 0.5 * 0.01 + 0.5 * g * g;
          ASSERT_NEAR(updated[at + size + j], g, 1e-9 * (1 + std::abs(g)));
          ASSERT_NEAR(updated[at + 2 * size + j], square, 1e-9 * (1 + square));
          ASSERT_NEAR(single[at + j], updated[at + j], 1e-4);
        }
        gradient += size;
        at += 3 * size;
      }
      ASSERT_EQ(at, updated.size());
      ASSERT_EQ(gradient, gradients.size());
    }
  }
}

TEST(Step, Bfloat16IsNear) {
  const Bf16Products* const products = bf16_products();
  if (products == nullptr) GTEST_SKIP() << "no products of bfloat16 here";
  for (const Sizes& s : kSizes) {
    const std::vector<double> expected = step<double>(s, true, 1);
    for (const int64_t workers : {1, 2, 3}) {
      if (workers > s.examples) continue;
      const std::vector<double> got = step<float>(s, true, workers, products);
      double error = 0, size = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        error += (got[i] - expected[i]) * (got[i] - expected[i]);
        size += expected[i] * expected[i];
      }
      EXPECT_LT(error, 1e-3 * size) << s.examples << ' ' << workers;
    }
  }
}

TEST(Step, WorkersChangeItByRoundingAlone) {
  for (const Sizes& s : kSizes) {
    const std::vector<double> one = step<double>(s, true, 1);
    for (const int64_t workers : {2, 3, 5}) {
      if (workers > s.examples) continue;
      const std::vector<double> several = step<double>(s, true, workers);
      EXPECT_EQ(several, step<double>(s, true, workers));
      for (size_t i = 0; i < one.size(); ++i) {
        ASSERT_NEAR(several[i], one[i], 1e-11 * (1 + std::abs(one[i])));
      }
    }
  }
}

}  // namespace
}  // namespace dvae::cpu
