// logmeanexp, its gradient, and the streaming statistics.
#include "core/logsumexp.h"
#include "support.h"

namespace dvae::test {
namespace {

constexpr int64_t kRows = 7;

// Rows of weights, among them the ones that have to be watched.
template <class A>
Buffer<A> log_weights(int64_t samples, Random& random) {
  auto v = random.buffer<A>(kRows * samples, -120, -80, 1);
  const auto row = [&](int64_t n) { return v.data() + n * samples; };
  for (int64_t k = 0; k < samples; ++k) row(1)[k] = -static_cast<A>(kInf);
  row(2)[samples - 1] = static_cast<A>(kNaN);
  row(3)[samples / 2] = static_cast<A>(kInf);
  row(4)[0] = -static_cast<A>(kInf);
  return v;
}

// A sum of up to 1025 terms a thread.
template <class A>
double terms(int64_t samples) {
  return 130 + 0.02 * static_cast<double>(samples);
}

template <class A>
class LogSumExpOf : public testing::Test {};
TYPED_TEST_SUITE(LogSumExpOf, Types);

TYPED_TEST(LogSumExpOf, MeanAndGradient) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Random random(3);
  for (const int64_t samples : {1, 2, 31, 32, 33, 1024, 1025, 10007}) {
    const auto log_w = log_weights<A>(samples, random);
    auto grad = random.buffer<A>(kRows, -1, 1);
    grad[4] = 0;
    Buffer<A> bound(kRows), wanted(kRows), gradient(kRows * samples),
        wanted_gradient(gradient.size());
    LogMeanExpParams p = {log_w.data(), bound.data(), grad.data(), gradient.data(), kRows, samples};
    run_in_all_orders(
        "K=" + std::to_string(samples),
        [&] {
          const cudaError_t error = cuda::logmeanexp(TypeOf<T>::dtype, p, nullptr);
          if (error != cudaSuccess) return error;
          return cuda::logmeanexp_backward(TypeOf<T>::dtype, p, nullptr);
        },
        bound, gradient);
    constexpr int t = static_cast<int>(TypeOf<T>::dtype);
    p.bound = wanted.data();
    p.grad_log_w = wanted_gradient.data();
    cpu_kernels().logmeanexp[t](p, 0, kRows);
    cpu_kernels().logmeanexp_backward[t](p, 0, kRows);
    expect_close("bound", bound, wanted, terms<A>(samples));
    expect_close("gradient", gradient, wanted_gradient, terms<A>(samples));
    EXPECT_EQ(bound.at(1), -kInf);
    EXPECT_TRUE(std::isnan(bound.at(2)));
    EXPECT_EQ(bound.at(3), kInf);
  }
}

TYPED_TEST(LogSumExpOf, Normalise) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Random random(4);
  for (const int64_t samples : {1, 33, 1025}) {
    const auto log_w = log_weights<A>(samples, random);
    Buffer<A> bound(kRows), wanted_bound(kRows), weights(log_w.size()), wanted(log_w.size());
    IwaeParams p{};
    p.bound = bound.data();
    p.log_w = weights.data();
    p.rows = kRows;
    p.samples = samples;
    run_in_all_orders(
        "K=" + std::to_string(samples),
        [&] {
          weights.copy(log_w);
          return cuda::iwae_normalise(TypeOf<T>::dtype, p, nullptr);
        },
        bound, weights);
    wanted.copy(log_w);
    p.bound = wanted_bound.data();
    p.log_w = wanted.data();
    cpu_kernels().iwae_normalise[static_cast<int>(TypeOf<T>::dtype)](p, 0, kRows);
    expect_close("bound", bound, wanted_bound, terms<A>(samples));
    expect_close("weights", weights, wanted, 5);
  }
}

TYPED_TEST(LogSumExpOf, Update) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Random random(5);
  for (const int64_t samples : {1, 2, 255, 257, 3001}) {
    const auto log_w = log_weights<A>(samples, random);
    auto state = random.buffer<double>(kRows * 5, 0, 3);
    // Row 0 has seen nothing, row 5 only NaN.
    const double nothing[] = {-kInf, 0, 0, 0, 0}, nan[] = {kNaN, kNaN, kNaN, kNaN, 1};
    std::memcpy(state.data(), nothing, sizeof(nothing));
    std::memcpy(state.data() + 5 * 5, nan, sizeof(nan));
    for (int64_t n = 1; n < kRows; ++n) {
      if (n != 5) state[5 * n] = -100;
    }
    Buffer<double> out(state.size()), wanted(state.size());
    run_in_all_orders(
        "K=" + std::to_string(samples),
        [&] {
          return cuda::lse_update(TypeOf<T>::dtype, state.data(), log_w.data(), kRows, samples,
                                  out.data(), nullptr);
        },
        out);
    cpu_kernels().lse_update[static_cast<int>(TypeOf<T>::dtype)](state.data(), log_w.data(),
                                                                 samples, wanted.data(), 0, kRows);
    expect_close("state", out, wanted, 130.0 * static_cast<double>(samples));
  }
}

// Gradients from the differences of log-weights, not from a bound rounded to its own size.
TEST(LogSumExpCases, GradientFarFromZero) {
  Random random(8);
  const auto log_w = random.buffer<float>(50, -3010, -3000);
  Buffer<float> grad(1), out(50);
  grad[0] = 1;
  const LogMeanExpParams p = {log_w.data(), nullptr, grad.data(), out.data(), 1, 50};
  ASSERT_EQ(cuda::logmeanexp_backward(DType::kFloat32, p, nullptr), cudaSuccess);
  double total = 0;
  for (int64_t k = 0; k < 50; ++k) total += std::exp(log_w.at(k) + 3000);
  for (int64_t k = 0; k < 50; ++k) {
    const double wanted = std::exp(log_w.at(k) + 3000) / total;
    EXPECT_NEAR(out[k], wanted, 2e-6 * wanted);
  }
}

// No samples: the state as it was.
TEST(LogSumExpCases, UpdateWithNothing) {
  Random random(6);
  const auto state = random.buffer<double>(3 * 5, -2, 2);
  Buffer<double> out(15);
  ASSERT_EQ(cuda::lse_update(DType::kFloat32, state.data(), nullptr, 3, 0, out.data(), nullptr),
            cudaSuccess);
  expect_same_bits("state", out, state);
}

TEST(LogSumExpCases, Empty) {
  const int64_t before = emulator::counts.launches;
  LogMeanExpParams p{};
  p.samples = 3;
  EXPECT_EQ(cuda::logmeanexp(DType::kFloat32, p, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::logmeanexp_backward(DType::kFloat32, p, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::lse_update(DType::kFloat32, nullptr, nullptr, 0, 3, nullptr, nullptr),
            cudaSuccess);
  EXPECT_EQ(emulator::counts.launches, before);
}

}  // namespace
}  // namespace dvae::test
