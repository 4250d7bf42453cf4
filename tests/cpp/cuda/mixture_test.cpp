// mixture_log_ratio and its gradient.
#include "support.h"

namespace dvae::test {
namespace {

template <class T>
struct MixtureSetup {
  using A = accumulate_t<T>;
  Buffer<T> mean, log_var, z;
  Buffer<A> grad, given;  // the latter: weights for the gradient
  MixtureParams p{};

  MixtureSetup(int64_t components, int64_t examples, int64_t samples, int64_t size, int64_t offset,
               Random& random)
      : mean(random.buffer<T>(components * examples * size, -0.2, 0.2, offset)),
        log_var(random.buffer<T>(mean.size(), -0.2, 0.2, offset)),
        z(random.buffer<T>(examples * samples * size, -2, 2, offset)),
        grad(random.buffer<A>(examples * samples, -1, 1, offset)),
        given(random.buffer<A>(grad.size() * components, 0, 1, offset)) {
    for (int64_t i = 0; i < given.size(); i += 3) given[i] = 0;
    p = mixture_params(z.data(), mean.data(), log_var.data(), components, examples, samples, size);
    p.grad = grad.data();
  }
  std::string name() const {
    return "M=" + std::to_string(p.components) + " K=" + std::to_string(p.samples) +
           " Z=" + std::to_string(p.size);
  }
};

DVAE_TYPED_SUITE(Mixture);

// More components than lanes, samples that are no whole chunks, sizes of more units than lanes.
template <class T, class F>
void for_setups(const F& body) {
  for_latents({1, 32, 50, 65, 129, 785}, {1, 5, 18},
              [&](int64_t size, int64_t samples, Random& random) {
                MixtureSetup<T> s(size == 50 ? 37 : 4, 3, samples, size, size % 2, random);
                body(s);
              });
}

TYPED_TEST(Mixture, LogRatio) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for_setups<T>([](MixtureSetup<T>& s) {
    Buffer<A> ratio(s.grad.size()), wanted(ratio.size());
    Buffer<A> weights(s.given.size()), wanted_weights(weights.size());
    MixtureParams p = s.p;
    p.log_ratio = ratio.data();
    p.weights = weights.data();
    run_in_all_orders(
        s.name(), [&] { return cuda::mixture_log_ratio(TypeOf<T>::dtype, p, nullptr); }, ratio,
        weights);
    s.p.log_ratio = wanted.data();
    s.p.weights = wanted_weights.data();
    cpu_kernels().mixture_log_ratio[static_cast<int>(TypeOf<T>::dtype)](s.p, 0, ratio.size());
    // An element's part of a ratio is at most ½ (2.2² e^0.2 + 2² + 0.2) = 5.1.
    const double terms = 6.0 * static_cast<double>(s.p.size);
    expect_close("log_ratio", ratio, wanted, terms);
    expect_close("weights", weights, wanted_weights, terms);
  });
}

TYPED_TEST(Mixture, LogRatioBackward) {
  using T = TypeParam;
  for_setups<T>([](MixtureSetup<T>& s) {
    Buffer<T> z(s.z.size(), 1), mean(s.mean.size()), log_var(mean.size());
    Buffer<T> wanted_z(z.size()), wanted_mean(mean.size()), wanted_log_var(mean.size());
    s.p.weights = s.given.data();
    MixtureParams p = s.p;
    p.grad_z = z.data();
    p.grad_mean = mean.data();
    p.grad_log_var = log_var.data();
    run_in_all_orders(
        s.name(), [&] { return cuda::mixture_log_ratio_backward(TypeOf<T>::dtype, p, nullptr); }, z,
        mean, log_var);
    s.p.grad_z = wanted_z.data();
    s.p.grad_mean = wanted_mean.data();
    s.p.grad_log_var = wanted_log_var.data();
    cpu_kernels().mixture_log_ratio_backward[static_cast<int>(TypeOf<T>::dtype)](s.p, 0,
                                                                                 s.p.examples);
    expect_close("z", z, wanted_z, 5.0 * static_cast<double>(s.p.components));
    expect_close("mean", mean, wanted_mean, 3.0 * static_cast<double>(s.p.samples));
    expect_close("log_var", log_var, wanted_log_var, 4.0 * static_cast<double>(s.p.samples));
  });
}

// NaN stays in its example; a component of infinite mean has weight 0, and all of them a ratio of
// inf and no gradient.
TEST(MixtureCases, NotFinite) {
  Random random(5);
  MixtureSetup<float> s(3, 4, 2, 50, 0, random);
  s.mean[(0 * 4 + 1) * 50 + 7] = static_cast<float>(kNaN);
  s.mean[(2 * 4 + 2) * 50 + 7] = static_cast<float>(kInf);
  for (int64_t m = 0; m < 3; ++m) s.mean[(m * 4 + 3) * 50 + 7] = static_cast<float>(-kInf);
  Buffer<float> ratio(8), wanted(8), weights(24), wanted_weights(24);
  MixtureParams p = s.p;
  p.log_ratio = ratio.data();
  p.weights = weights.data();
  ASSERT_EQ(cuda::mixture_log_ratio(DType::kFloat32, p, nullptr), cudaSuccess);
  MixtureParams q = s.p;
  q.log_ratio = wanted.data();
  q.weights = wanted_weights.data();
  cpu_kernels().mixture_log_ratio[0](q, 0, 8);
  expect_close("log_ratio", ratio, wanted, 300);
  expect_close("weights", weights, wanted_weights, 300);
  EXPECT_TRUE(std::isfinite(ratio[1]) && std::isnan(ratio[3]) && std::isfinite(ratio[4]));
  EXPECT_EQ(weights[4 * 3 + 2], 0.0f);
  EXPECT_EQ(ratio[7], static_cast<float>(kInf));

  Buffer<float> z(s.z.size()), mean(s.mean.size()), log_var(mean.size());
  Buffer<float> wanted_z(z.size()), wanted_mean(mean.size()), wanted_log_var(mean.size());
  p.grad_z = z.data();
  p.grad_mean = mean.data();
  p.grad_log_var = log_var.data();
  ASSERT_EQ(cuda::mixture_log_ratio_backward(DType::kFloat32, p, nullptr), cudaSuccess);
  q.grad_z = wanted_z.data();
  q.grad_mean = wanted_mean.data();
  q.grad_log_var = wanted_log_var.data();
  cpu_kernels().mixture_log_ratio_backward[0](q, 0, 4);
  expect_close("z", z, wanted_z, 300);
  expect_close("mean", mean, wanted_mean, 300);
  expect_close("log_var", log_var, wanted_log_var, 300);
  for (int64_t e = 0; e < 50; ++e) {
    EXPECT_EQ(z[7 * 50 + e], 0.0f);
    EXPECT_EQ(mean[3 * 50 + e], 0.0f);
    EXPECT_EQ(log_var[3 * 50 + e], 0.0f);
  }
}

TEST(MixtureCases, Empty) {
  const int64_t before = emulator::counts.launches;
  Random random(6);
  for (const auto& [examples, samples] : {std::pair{0, 3}, std::pair{3, 0}}) {
    MixtureSetup<float> s(2, examples, samples, 5, 0, random);
    EXPECT_EQ(cuda::mixture_log_ratio(DType::kFloat32, s.p, nullptr), cudaSuccess);
  }
  EXPECT_EQ(emulator::counts.launches, before);

  // No latents: log_ratio is 0. No samples: the gradients are.
  MixtureSetup<float> no_latents(2, 3, 2, 0, 0, random);
  Buffer<float> ratio(6), weights(12), mean(30), log_var(30);
  no_latents.p.log_ratio = ratio.data();
  no_latents.p.weights = weights.data();
  ASSERT_EQ(cuda::mixture_log_ratio(DType::kFloat32, no_latents.p, nullptr), cudaSuccess);
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(ratio[i], 0.0f);
  for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(weights[i], 0.5f);
  MixtureSetup<float> no_samples(2, 3, 0, 5, 0, random);
  no_samples.p.grad_mean = mean.data();
  no_samples.p.grad_log_var = log_var.data();
  ASSERT_EQ(cuda::mixture_log_ratio_backward(DType::kFloat32, no_samples.p, nullptr), cudaSuccess);
  for (int64_t i = 0; i < 30; ++i) EXPECT_TRUE(mean[i] == 0.0f && log_var[i] == 0.0f);
}

}  // namespace
}  // namespace dvae::test
