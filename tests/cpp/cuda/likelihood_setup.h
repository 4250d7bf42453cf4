// Operands of a likelihood for both backends.
#pragma once

#include "core/likelihoods.h"
#include "support.h"

namespace dvae::test {

// A scale: one element, one a dimension, or one an element; a Bernoulli and a Poisson have none.
enum class ScaleOf { kNone, kOne, kEach, kFull };
constexpr ScaleOf kScales[] = {ScaleOf::kNone, ScaleOf::kOne, ScaleOf::kEach, ScaleOf::kFull};
// Those that are neither Bernoulli nor Gaussian.
constexpr LikelihoodKind kOthers[] = {LikelihoodKind::kDiscretisedLogistic,
                                      LikelihoodKind::kNegativeBinomial,
                                      LikelihoodKind::kPoisson,
                                      LikelihoodKind::kLaplace,
                                      LikelihoodKind::kContinuousBernoulli,
                                      LikelihoodKind::kBernoulliProbabilities};

inline bool takes(LikelihoodKind likelihood, ScaleOf scale) {
  return has_scale(likelihood) == (scale != ScaleOf::kNone);
}

template <class T>
struct Likelihood {
  using A = accumulate_t<T>;
  int64_t copies = 2, examples, samples, size;
  ScaleOf scale_of;
  LikelihoodKind of;
  Buffer<T> params, bias, full_scale;
  Buffer<A> x, shared_scale, log_ratio, grad;
  Buffer<double> log_scale{1};
  std::vector<A> scale_table;
  double log_scale_sum = 0;

  Likelihood(int64_t examples_in, int64_t samples_in, int64_t size_in, ScaleOf scale_in,
             int64_t offset, Random& random, LikelihoodKind of_in = LikelihoodKind::kGaussian)
      : examples(examples_in),
        samples(samples_in),
        size(size_in),
        scale_of(scale_in),
        of(of_in),
        params(random.buffer<T>(rows() * size, least(), most(), offset)),
        bias(random.buffer<T>(size, counts() ? 0 : -1, 1, offset)),
        full_scale(
            random.buffer<T>(scale_in == ScaleOf::kFull ? rows() * size : 0, 0.5, 2, offset)),
        x(random.data<A>(examples * size, offset)),
        shared_scale(random.buffer<A>(scale_in == ScaleOf::kEach ? size : 1, 0.5, 2, offset)),
        log_ratio(random.buffer<A>(rows(), -3, 3)),
        grad(random.buffer<A>(rows(), -1, 1)) {
    for (int64_t i = 0; i < x.size(); ++i) {
      if (counts()) x[i] = std::floor(20 * x[i]);
      if (likelihood() == LikelihoodKind::kDiscretisedLogistic) x[i] = std::round(255 * x[i]) / 255;
    }
    for (int64_t i = 0; i < whole_blocks(size); ++i) {
      scale_table.push_back(shared_scale[std::min(i, shared_scale.size() - 1)]);
    }
    for (int64_t i = 0; i < size; ++i) {
      log_scale_sum += std::log(static_cast<double>(scale_table[static_cast<size_t>(i)]));
    }
  }

  int64_t rows() const { return copies * examples * samples; }
  LikelihoodKind likelihood() const {
    return takes(of, scale_of) ? of : LikelihoodKind::kBernoulli;
  }
  bool probabilities() const { return likelihood() == LikelihoodKind::kBernoulliProbabilities; }
  double least() const { return probabilities() ? 0.05 : counts() ? 1 : -4; }
  double most() const { return probabilities() ? 0.95 : counts() ? 9 : 4; }
  bool counts() const {
    return likelihood() == LikelihoodKind::kNegativeBinomial ||
           likelihood() == LikelihoodKind::kPoisson;
  }
  ScaleKind kind() const {
    return scale_of == ScaleOf::kNone   ? ScaleKind::kNone
           : scale_of == ScaleOf::kFull ? ScaleKind::kFull
                                        : ScaleKind::kShared;
  }
  bool shared() const { return kind() == ScaleKind::kShared; }
  // A layer's, of a likelihood whose kernels add it.
  const T* bias_of_layer() const { return is_light(likelihood()) ? bias.data() : nullptr; }
  // Bounds the absolute terms of a row: |l|, or u²/2 with u <= 12, or log 20!, and more.
  double terms() const {
    return (likelihood() == LikelihoodKind::kBernoulli ? 6.0 : 75.0) * size + 5;
  }

  // What P has, of the operands, for the CPU's kernel or the device's; with where to write unset.
  template <class P>
  P host() const {
    P p = operands<P>();
    p.scale_stride = kBlock;
    p.log_scale = shared() ? &log_scale_sum : nullptr;
    if (shared()) p.scale = scale_table.data();
    return p;
  }
  // With Σ log scale as the device makes it.
  template <class P>
  P device() {
    P p = operands<P>();
    if (shared()) {
      p.scale = shared_scale.data();
      p.scale_stride = scale_of == ScaleOf::kEach ? 1 : 0;
      EXPECT_EQ(cuda::log_scale_sum(TypeOf<T>::dtype, shared_scale.data(), shared_scale.size(),
                                    size, log_scale.data(), nullptr, nullptr),
                cudaSuccess);
      p.log_scale = log_scale.data();
    }
    return p;
  }
  cuda::LogWeights forward() {
    auto p = device<cuda::LogWeights>();
    p.end = rows();
    return p;
  }
  cuda::LogWeightGrads backward() {
    auto p = device<cuda::LogWeightGrads>();
    p.end = rows();
    p.multiplier = 1;
    p.parts = 1;
    return p;
  }
  std::string name() const {
    return std::string(kLikelihoodNames[l()]) + " scale " +
           std::to_string(static_cast<int>(scale_of)) + " K=" + std::to_string(samples) +
           " D=" + std::to_string(size);
  }
  const cpu::Kernels& table() const { return cpu_kernels(); }
  static constexpr int t = static_cast<int>(TypeOf<T>::dtype);
  int l() const { return static_cast<int>(likelihood()); }

 private:
  template <class P>
  P operands() const {
    auto p = decoder_params<P>(params.data(), x.data(), copies * examples, examples, samples, size);
    if (scale_of == ScaleOf::kFull) p.scale = full_scale.data();
    if constexpr (std::is_base_of_v<LogWeightParams, P>) p.log_ratio = log_ratio.data();
    if constexpr (std::is_base_of_v<LogWeightGradParams, P>) p.grad = grad.data();
    return p;
  }
};

}  // namespace dvae::test
