// sample_latent and latent_log_ratio, and their gradients.
#include "support.h"

namespace dvae::test {
namespace {

template <class T>
struct LatentSetup {
  using A = accumulate_t<T>;
  int64_t rows;
  Buffer<T> mean, log_var, z, grad_z;
  Buffer<A> grad_r;
  LatentParams p;

  LatentSetup(int64_t copies, int64_t examples, int64_t samples, int64_t size, int64_t offset,
              Random& random)
      : rows(copies * examples),
        mean(random.buffer<T>(rows * size, -2, 2, offset)),
        log_var(random.buffer<T>(rows * size, -3, 3, offset)),
        z(random.buffer<T>(rows * samples * size, -3, 3, offset)),
        grad_z(random.buffer<T>(rows * samples * size, -1, 1, offset)),
        grad_r(random.buffer<A>(rows * samples, -1, 1, offset)),
        p(latent_params(mean.data(), log_var.data(), copies, examples, samples, size)) {}
  std::string name() const {
    return "Z=" + std::to_string(p.size) + " K=" + std::to_string(p.samples);
  }
};

DVAE_TYPED_SUITE(Latent);

template <class T, class F>
void for_setups(const F& body) {
  for_latents({1, 32, 50, 64, 65, 129, 785}, {1, 5, 37},
              [&](int64_t size, int64_t samples, Random& random) {
                LatentSetup<T> s(2, 3, samples, size, size % 2, random);
                body(s);
              });
}

// e^(½ 3) 6.7 bounds σ ε; squared, and with the other terms, an element's part of log_ratio.
constexpr double kTerms = 1000;

template <class T>
void check_sample(LatentSetup<T>& s) {
  Buffer<T> z(s.z.size(), s.p.size % 2), wanted_z(z.size());
  Buffer<accumulate_t<T>> ratio(s.grad_r.size()), wanted_ratio(ratio.size());
  LatentParams p = s.p;
  p.z = z.data();
  p.log_ratio = ratio.data();
  run_in_all_orders(
      s.name(), [&] { return cuda::sample_latent(TypeOf<T>::dtype, p, nullptr); }, z, ratio);
  s.p.z = wanted_z.data();
  s.p.log_ratio = wanted_ratio.data();
  cpu_kernels().sample_latent[TypeOf<T>::index](s.p, 0, ratio.size());
  expect_close("z", z, wanted_z, 32);
  expect_close("log_ratio", ratio, wanted_ratio, kTerms * std::sqrt(s.p.size));
}

TYPED_TEST(Latent, Sample) { for_setups<TypeParam>(check_sample<TypeParam>); }

// Several samples a team: only where there are more of them than threads.
TYPED_TEST(Latent, SampleInChunks) {
  Random random(4);
  for (const int64_t samples : {64, 70}) {
    LatentSetup<TypeParam> s(2, 3, samples, 50, 0, random);
    Device device;
    device->multiprocessors = 1;
    check_sample(s);
  }
}

TYPED_TEST(Latent, SampleBackward) {
  using T = TypeParam;
  for_setups<T>([](LatentSetup<T>& s) {
    for (int which = 0; which < 3; ++which) {  // gradients of z, of log_ratio, of both
      Buffer<T> mean(s.mean.size()), log_var(mean.size());
      Buffer<T> wanted_mean(mean.size()), wanted_log_var(mean.size());
      s.p.grad_z = which != 1 ? s.grad_z.data() : nullptr;
      s.p.grad_log_ratio = which != 0 ? s.grad_r.data() : nullptr;
      LatentParams p = s.p;
      p.grad_mean = mean.data();
      p.grad_log_var = log_var.data();
      run_in_all_orders(
          s.name() + " of " + std::to_string(which),
          [&] { return cuda::sample_latent_backward(TypeOf<T>::dtype, p, nullptr); }, mean,
          log_var);
      s.p.grad_mean = wanted_mean.data();
      s.p.grad_log_var = wanted_log_var.data();
      cpu_kernels().sample_latent_backward[static_cast<int>(TypeOf<T>::dtype)](s.p, 0, s.rows);
      expect_close("mean", mean, wanted_mean, 32.0 * s.p.samples);
      expect_close("log_var", log_var, wanted_log_var, kTerms * std::sqrt(s.p.samples));
    }
  });
}

TYPED_TEST(Latent, LogRatio) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for_setups<T>([](LatentSetup<T>& s) {
    Buffer<A> ratio(s.grad_r.size()), wanted(ratio.size());
    s.p.z = s.z.data();
    LatentParams p = s.p;
    p.noise.seed = nullptr;  // needs none
    p.log_ratio = ratio.data();
    run_in_all_orders(
        s.name(), [&] { return cuda::latent_log_ratio(TypeOf<T>::dtype, p, nullptr); }, ratio);
    s.p.log_ratio = wanted.data();
    cpu_kernels().latent_log_ratio[static_cast<int>(TypeOf<T>::dtype)](s.p, 0, ratio.size());
    expect_close("log_ratio", ratio, wanted, kTerms * std::sqrt(s.p.size));
  });
}

TYPED_TEST(Latent, LogRatioBackward) {
  using T = TypeParam;
  for_setups<T>([](LatentSetup<T>& s) {
    Buffer<T> z(s.z.size(), 1), mean(s.mean.size()), log_var(mean.size());
    Buffer<T> wanted_z(z.size()), wanted_mean(mean.size()), wanted_log_var(mean.size());
    s.p.z = s.z.data();
    s.p.grad_log_ratio = s.grad_r.data();
    LatentParams p = s.p;
    p.noise.seed = nullptr;
    p.grad_z_out = z.data();
    p.grad_mean = mean.data();
    p.grad_log_var = log_var.data();
    run_in_all_orders(
        s.name(), [&] { return cuda::latent_log_ratio_backward(TypeOf<T>::dtype, p, nullptr); }, z,
        mean, log_var);
    s.p.grad_z_out = wanted_z.data();
    s.p.grad_mean = wanted_mean.data();
    s.p.grad_log_var = wanted_log_var.data();
    cpu_kernels().latent_log_ratio_backward[static_cast<int>(TypeOf<T>::dtype)](s.p, 0, s.rows);
    expect_close("z", z, wanted_z, 100);
    expect_close("mean", mean, wanted_mean, 100.0 * s.p.samples);
    expect_close("log_var", log_var, wanted_log_var, kTerms * std::sqrt(s.p.samples));
  });
}

// A row that is not finite must not reach the others.
TEST(LatentCases, NotFinite) {
  Random random(5);
  LatentSetup<float> s(1, 4, 3, 50, 0, random);
  s.mean[50 + 7] = static_cast<float>(kNaN);
  s.log_var[2 * 50 + 7] = static_cast<float>(kInf);
  Buffer<float> z(s.z.size()), wanted_z(z.size()), ratio(12), wanted(12);
  LatentParams p = s.p;
  p.z = z.data();
  p.log_ratio = ratio.data();
  ASSERT_EQ(cuda::sample_latent(DType::kFloat32, p, nullptr), cudaSuccess);
  s.p.z = wanted_z.data();
  s.p.log_ratio = wanted.data();
  cpu_kernels().sample_latent[0](s.p, 0, 12);
  expect_close("z", z, wanted_z, 32);
  expect_close("log_ratio", ratio, wanted, kTerms * 8);
  EXPECT_TRUE(std::isfinite(ratio[0]) && !std::isfinite(ratio[3]) && !std::isfinite(ratio[6]));
}

TEST(LatentCases, Empty) {
  const int64_t before = emulator::counts.launches;
  Random random(6);
  for (const auto& [rows, samples] : {std::pair{0, 3}, std::pair{3, 0}}) {
    LatentSetup<float> s(1, rows, samples, 5, 0, random);
    EXPECT_EQ(cuda::sample_latent(DType::kFloat32, s.p, nullptr), cudaSuccess);
    EXPECT_EQ(cuda::latent_log_ratio(DType::kFloat32, s.p, nullptr), cudaSuccess);
  }
  EXPECT_EQ(emulator::counts.launches, before);

  // No latents: log_ratio is 0. No samples: the gradients are.
  LatentSetup<float> no_latents(1, 3, 2, 0, 0, random);
  Buffer<float> ratio(6), mean(15), log_var(15);
  no_latents.p.log_ratio = ratio.data();
  ASSERT_EQ(cuda::sample_latent(DType::kFloat32, no_latents.p, nullptr), cudaSuccess);
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(ratio[i], 0.0f);
  LatentSetup<float> no_samples(1, 3, 0, 5, 0, random);
  no_samples.p.grad_mean = mean.data();
  no_samples.p.grad_log_var = log_var.data();
  ASSERT_EQ(cuda::sample_latent_backward(DType::kFloat32, no_samples.p, nullptr), cudaSuccess);
  for (int64_t i = 0; i < 15; ++i) EXPECT_TRUE(mean[i] == 0.0f && log_var[i] == 0.0f);
}

}  // namespace
}  // namespace dvae::test
