// The fused loss, in one kernel and in three.
#include "likelihood_setup.h"

namespace dvae::test {
namespace {

constexpr double kMultiplier = -0.25;

// Everything the operator gives.
template <class T>
struct Fused {
  using A = accumulate_t<T>;
  Buffer<A> bound, weights, scale_sum;
  Buffer<T> params, scale;
  Buffer<double> parts;

  explicit Fused(const Likelihood<T>& s, int64_t offset = 0)
      : bound(s.copies * s.examples),
        weights(s.rows()),
        scale_sum(s.shared() ? s.shared_scale.size() : 0),
        params(s.rows() * s.size, offset),
        scale(s.full_scale.size(), offset),
        parts(s.shared() ? 2 * s.size : 0) {}

  void point(IwaeParams& p) {
    p.bound = bound.data();
    p.log_w = weights.data();
    p.grad_params = params.data();
    p.grad_scale = scale.data();
    p.multiplier = kMultiplier;
  }
};

template <class T>
void run_on_cpu(const Likelihood<T>& s, Fused<T>& out) {
  auto host = s.template host<IwaeParams>();
  out.point(host);
  std::vector<double> sums(static_cast<size_t>(whole_blocks(s.size)));
  s.table().iwae[s.l()][s.t](host, s.kind(), s.shared() ? sums.data() : nullptr, 0,
                             s.copies * s.examples);
  double total = 0;
  for (int64_t j = 0; j < s.size; ++j) {
    if (out.scale_sum.size() == s.size) {
      out.scale_sum[j] = static_cast<accumulate_t<T>>(sums[static_cast<size_t>(j)]);
    }
    total += sums[static_cast<size_t>(j)];
  }
  if (out.scale_sum.size() == 1) out.scale_sum[0] = static_cast<accumulate_t<T>>(total);
}

template <class T>
cudaError_t run_on_device(Likelihood<T>& s, Fused<T>& out, bool in_place) {
  auto p = s.template device<cuda::Iwae>();
  out.point(p);
  if (in_place) {
    out.params.copy(s.params);
    p.params = out.params.data();
  }
  p.bias = s.bias.data();  // not read
  p.parts = 2;
  p.scale_parts = s.shared() ? out.parts.data() : nullptr;
  const cudaError_t error = cuda::iwae(s.likelihood(), TypeOf<T>::dtype, s.kind(), p, nullptr);
  if (!s.shared() || error != cudaSuccess) return error;
  using A = accumulate_t<T>;
  return cuda::finish_sums(TypeOf<A>::dtype, out.parts.data(), 2, s.size, out.scale_sum.data(),
                           out.scale_sum.size(), nullptr);
}

// launches: of the operator alone.
template <class T>
void check(Likelihood<T>& s, bool in_place, int launches) {
  Fused<T> got(s, s.size % 3 == 1 ? 1 : 0), wanted(s);
  SCOPED_TRACE(s.name() + (in_place ? " in place" : ""));
  run_with_grids(
      launches == 1 ? 2 : emulator::settings.max_grid, "",
      [&] { return run_on_device(s, got, in_place); }, got.bound, got.weights, got.scale_sum,
      got.params, got.scale);
  const int64_t before = emulator::counts.launches;
  ASSERT_EQ(run_on_device(s, got, in_place), cudaSuccess);
  const int64_t around = s.shared() ? 2 : 0;  // log_scale_sum and finish_sums
  EXPECT_EQ(emulator::counts.launches - before, launches + around);
  run_on_cpu(s, wanted);
  expect_close("bound", got.bound, wanted.bound, s.terms());
  // The error of a log-weight is a relative one of its weight, which is at most 1.
  expect_close("weights", got.weights, wanted.weights, 2 * s.terms());
  const double largest = s.kind() == ScaleKind::kNone ? 1 : 100;
  expect_close("params", got.params, wanted.params, largest * s.terms());
  expect_close("scale", got.scale, wanted.scale, largest * s.terms());
  expect_close("scale sum", got.scale_sum, wanted.scale_sum,
               largest * s.terms() * static_cast<double>(s.rows()));
}

DVAE_TYPED_SUITE(Iwae);

TYPED_TEST(Iwae, InOneKernel) {
  using T = TypeParam;
  Random random(3);
  for (const int64_t size : {1, 63, 64, 65, 784, 785}) {
    for (const ScaleOf scale : {ScaleOf::kNone, ScaleOf::kFull}) {
      for (const bool in_place : {false, true}) {
        Likelihood<T> s(2, 5, size, scale, size % 3 == 1 ? 1 : 0, random);
        check(s, in_place, 1);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TYPED_TEST(Iwae, Others) {
  using T = TypeParam;
  Random random(14);
  for (const LikelihoodKind kind : kOthers) {
    for (const ScaleOf scale : {ScaleOf::kNone, ScaleOf::kEach, ScaleOf::kFull}) {
      if (!takes(kind, scale)) continue;
      for (const int64_t size : {65, 784}) {
        Likelihood<T> s(2, 5, size, scale, 0, random, kind);
        check(s, size == 65, s.shared() ? 3 : 1);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// A row in several segments (K = 1, 2, 3), and more samples than a block has warps.
TYPED_TEST(Iwae, Warps) {
  using T = TypeParam;
  Random random(4);
  for (const ScaleOf scale : {ScaleOf::kNone, ScaleOf::kFull}) {
    for (const int64_t samples : {1, 2, 3, 37}) {
      const int64_t size = samples < 4 ? 1985 : 65;
      for (const int64_t more : {0, 15}) {  // 2000 is a multiple of 16 bytes
        Likelihood<T> s(2, samples, size + more, scale, 0, random);
        check(s, false, 1);
        if (samples < 3) {
          EXPECT_GT(emulator::counts.threads, 32 * samples);
        }
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// A shared scale, or an example that does not fit in a block.
TYPED_TEST(Iwae, InThreeKernels) {
  using T = TypeParam;
  Random random(5);
  for (const int64_t size : {1, 64, 785}) {
    for (const ScaleOf scale : kScales) {
      for (const bool in_place : {false, true}) {
        Likelihood<T> s(2, 3, size, scale, 0, random);
        Device device;
        if (!s.shared()) device->shared_bytes = static_cast<int>(3 * size * sizeof(T));
        check(s, in_place, 3);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// The largest example that fits in a Hopper block, and the next.
TEST(IwaeCases, SharedMemoryLimit) {
  Random random(6);
  for (const int64_t samples : {74, 75}) {
    Likelihood<float> s(1, samples, 784, ScaleOf::kNone, 0, random);
    s.copies = 1;
    Fused<float> got(s);
    const int64_t before = emulator::counts.launches;
    ASSERT_EQ(run_on_device(s, got, false), cudaSuccess);
    EXPECT_EQ(emulator::counts.launches - before, samples == 74 ? 1 : 3);
  }
}

// log-weights of −inf, ±inf and NaN, each in an example of its own.
TYPED_TEST(Iwae, NotFinite) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Random random(7);
  for (const bool fits : {true, false}) {
    Likelihood<T> s(6, 3, 66, ScaleOf::kNone, 0, random);
    s.copies = 1;
    for (int k = 0; k < 3; ++k) s.log_ratio[k] = -static_cast<A>(kInf);  // example 0: no weight
    s.log_ratio[3] = -static_cast<A>(kInf);                              // 1: one weight is 0
    s.params[(2 * 3 + 1) * s.size] = make<T>(kNaN);                      // 2: NaN
    s.log_ratio[3 * 3] = static_cast<A>(kInf);                           // 3: an infinite weight
    s.log_ratio[4 * 3 + 1] = static_cast<A>(kNaN);
    Device device;
    if (!fits) device->shared_bytes = 64;
    Fused<T> got(s), wanted(s);
    ASSERT_EQ(run_on_device(s, got, false), cudaSuccess);
    run_on_cpu(s, wanted);
    expect_close("bound", got.bound, wanted.bound, s.terms());
    expect_close("weights", got.weights, wanted.weights, 2 * s.terms());
    expect_close("params", got.params, wanted.params, 2 * s.terms());
    EXPECT_EQ(got.bound.at(0), -kInf);
    for (int64_t i = 0; i < 3 * s.size; ++i) ASSERT_EQ(got.params.at(i), 0.0);
    EXPECT_TRUE(std::isnan(got.bound.at(2)) && std::isnan(got.bound.at(4)));
    EXPECT_EQ(got.bound.at(3), kInf);
    EXPECT_TRUE(std::isfinite(got.bound.at(1)) && std::isfinite(got.bound.at(5)));
  }
}

TEST(IwaeCases, Empty) {
  Random random(8);
  Likelihood<float> none(0, 3, 5, ScaleOf::kNone, 0, random);
  Fused<float> nothing(none);
  const int64_t before = emulator::counts.launches;
  EXPECT_EQ(run_on_device(none, nothing, false), cudaSuccess);
  EXPECT_EQ(emulator::counts.launches, before);
  // No samples: no weight, so the bound is −inf.
  Likelihood<float> no_samples(2, 0, 5, ScaleOf::kNone, 0, random);
  Fused<float> out(no_samples);
  ASSERT_EQ(run_on_device(no_samples, out, false), cudaSuccess);
  for (int64_t i = 0; i < out.bound.size(); ++i) EXPECT_EQ(out.bound[i], -kInf);
}

}  // namespace
}  // namespace dvae::test
