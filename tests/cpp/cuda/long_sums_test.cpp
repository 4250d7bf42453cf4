// float32 sums of thousands of equal terms, the worst case of rounding: 2e-6 of Σ |terms|, as
// tests/test_long_sums.py asks of every device.
#include <functional>

#include "support.h"

namespace dvae::test {
namespace {

constexpr double kTolerance = 2e-6;
constexpr DType kFloat = DType::kFloat32;

Buffer<float> full(int64_t n, float v) {
  Buffer<float> out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = v;
  return out;
}

void expect_all(const std::string& what, const Buffer<float>& got, double wanted, double terms) {
  double worst = 0;
  for (int64_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got.at(i) - wanted));
  EXPECT_LE(worst / terms, kTolerance) << what;
}

// rows of 1: a warp each; 4 and a small device: four rows of eight lanes.
TEST(LongSums, LogWeightsOverDimensions) {
  for (const auto& [samples, size] :
       {std::pair{1, 3072}, std::pair{1, 12288}, std::pair{1, 196608}, std::pair{4, 12288}}) {
    for (const float x : {5.3f, 1.7f, 11.1f}) {
      Device device;
      device->multiprocessors = 1;
      const int64_t rows = samples == 4 ? 256 : 1;
      const Buffer<float> params = full(rows * size, 1), data = full(size, x);
      const Buffer<float> scale = full(1, 1);
      Buffer<float> log_w(rows);
      Buffer<double> log_scale(1);
      log_scale[0] = 0;
      auto p = decoder_params<cuda::LogWeights>(params.data(), data.data(), rows / samples, 1,
                                                samples, size);
      p.scale = scale.data();
      p.log_scale = log_scale.data();
      p.log_w = log_w.data();
      p.end = rows;
      const std::string name = std::to_string(size) + " dimensions, x = " + std::to_string(x);
      const auto n = static_cast<double>(size), u = static_cast<double>(x) - 1;
      ASSERT_EQ(
          cuda::log_weights(LikelihoodKind::kGaussian, kFloat, ScaleKind::kShared, p, nullptr),
          cudaSuccess);
      const double gaussian = n * (0.5 * u * u + 0.91893853320467274178);
      expect_all("Gaussian, " + name, log_w, -gaussian, gaussian);

      // Of a huge dispersion: a Poisson of mean 1, whose log p is −1 − log x!.
      const Buffer<float> counts = full(size, std::floor(x));
      const Buffer<float> huge = full(1, 1e20f);
      p.x = counts.data();
      p.scale = huge.data();
      ASSERT_EQ(cuda::log_weights(LikelihoodKind::kNegativeBinomial, kFloat, ScaleKind::kShared, p,
                                  nullptr),
                cudaSuccess);
      const double poisson = n * (1 + std::lgamma(std::floor(static_cast<double>(x)) + 1));
      // What an element's own rounding is, is not of the sum.
      expect_all("negative binomial, " + name, log_w, -poisson,
                 poisson + n * 46 * std::floor(static_cast<double>(x)));
    }
  }
}

TEST(LongSums, LatentsOverDimensions) {
  const int64_t size = 12288;
  const Buffer<float> mean = full(size, 3.1f), log_var = full(size, -0.8f), z = full(size, 1.7f);
  Buffer<float> ratio(1);
  LatentParams p = latent_params(mean.data(), log_var.data(), 1, 1, 1, size);
  p.z = const_cast<float*>(z.data());
  p.log_ratio = ratio.data();
  ASSERT_EQ(cuda::latent_log_ratio(kFloat, p, nullptr), cudaSuccess);
  const double d = z.at(0) - mean.at(0), v = log_var.at(0);
  const double q = d * d * std::exp(-v), z2 = z.at(0) * z.at(0);
  expect_all("log_ratio", ratio, 0.5 * size * (q - z2 + v), 0.5 * size * (q + z2 - v));
}

TEST(LongSums, LatentGradientsOverSamples) {
  const int64_t size = 5;
  for (const int64_t samples : {500, 5000, 10000}) {
    const std::string name = " of " + std::to_string(samples) + " samples";
    const auto k = static_cast<double>(samples);
    const Buffer<float> zero = full(size, 0), z = full(samples * size, 1.7f);
    const Buffer<float> grad_z = full(samples * size, 0.3f), grad_r = full(samples, 1);
    Buffer<float> mean(size), log_var(size), grad_z_out(samples * size);
    std::vector<int64_t> seed{1};
    LatentParams p = latent_params(zero.data(), zero.data(), 1, 1, samples, size);
    p.grad_z = grad_z.data();
    p.grad_mean = mean.data();
    p.grad_log_var = log_var.data();
    p.noise = {seed.data(), 0, 0};
    ASSERT_EQ(cuda::sample_latent_backward(kFloat, p, nullptr), cudaSuccess);
    expect_all("mean, sampled" + name, mean, k * grad_z.at(0), k * grad_z.at(0));

    p.z = const_cast<float*>(z.data());
    p.grad_log_ratio = grad_r.data();
    p.grad_z_out = grad_z_out.data();
    ASSERT_EQ(cuda::latent_log_ratio_backward(kFloat, p, nullptr), cudaSuccess);
    const double d = z.at(0);
    expect_all("mean, given" + name, mean, -k * d, k * d);
    expect_all("log_var, given" + name, log_var, 0.5 * k * (1 - d * d), 0.5 * k * (1 + d * d));
  }
}

// M times the same component: its own ratio, 1/M of its gradient each, and the whole of z's.
TEST(LongSums, MixtureOfEqualComponents) {
  struct Case {
    int64_t components, samples, size;
  };
  for (const Case c : {Case{700, 3, 5}, Case{5000, 3, 5}, Case{3, 5000, 5}, Case{2, 3, 12288}}) {
    const std::string name = ", M=" + std::to_string(c.components) +
                             " K=" + std::to_string(c.samples) + " Z=" + std::to_string(c.size);
    const Buffer<float> z = full(c.samples * c.size, 1.7f);
    const Buffer<float> mean = full(c.components * c.size, 3.1f);
    const Buffer<float> log_var = full(c.components * c.size, -0.8f);
    const Buffer<float> grad = full(c.samples, 1);
    Buffer<float> ratio(c.samples), weights(c.samples * c.components);
    Buffer<float> d_z(z.size()), d_mean(mean.size()), d_log_var(mean.size());
    MixtureParams p =
        mixture_params(z.data(), mean.data(), log_var.data(), c.components, 1, c.samples, c.size);
    p.log_ratio = ratio.data();
    p.weights = weights.data();
    p.grad = grad.data();
    p.grad_z = d_z.data();
    p.grad_mean = d_mean.data();
    p.grad_log_var = d_log_var.data();
    ASSERT_EQ(cuda::mixture_log_ratio(kFloat, p, nullptr), cudaSuccess);
    ASSERT_EQ(cuda::mixture_log_ratio_backward(kFloat, p, nullptr), cudaSuccess);
    const double d = z.at(0) - mean.at(0), v = log_var.at(0), precision = std::exp(-v);
    const double q = d * d * precision, z2 = z.at(0) * z.at(0), n = static_cast<double>(c.size);
    const double scale = static_cast<double>(c.samples) / static_cast<double>(c.components);
    expect_all("log_ratio" + name, ratio, 0.5 * n * (q - z2 + v), 0.5 * n * (q + z2 - v));
    expect_all("z" + name, d_z, d * precision - z.at(0), std::abs(d) * precision + z.at(0));
    expect_all("mean" + name, d_mean, -scale * d * precision, scale * std::abs(d) * precision);
    expect_all("log_var" + name, d_log_var, 0.5 * scale * (1 - q), 0.5 * scale * (1 + q));
  }
}

}  // namespace
}  // namespace dvae::test
