// The kernels over rows of which a mask leaves out elements, held against the CPU's, and where it
// leaves out none against the kernels without a mask, whose tests run them in all orders of
// threads.
#include "cpu/masked.h"
#include "core/likelihoods.h"
#include "likelihood_setup.h"

namespace dvae::test {
namespace {

DVAE_TYPED_SUITE(Masked);

// Where all of the rows' numbers go.
template <class T>
struct Results {
  using A = accumulate_t<T>;
  Buffer<A> log_w, bound, weights, scale_sum;
  Buffer<T> d_params, d_scale;
  Buffer<double> bias_parts, scale_parts;

  explicit Results(const Likelihood<T>& s, int64_t offset = 0)
      : log_w(s.rows()),
        bound(s.copies * s.examples),
        weights(s.rows()),
        scale_sum(s.shared() ? s.size : 0),
        d_params(s.rows() * s.size, offset),
        d_scale(s.full_scale.size(), offset),
        bias_parts(2 * s.size),
        scale_parts(2 * (s.shared() ? s.size : 0)) {}
};

// A mask of so many examples, of which the first has nothing, the second all and the others some;
// what it leaves out of params and scales is inf, and NaN of x.
template <class T>
struct Some {
  int64_t examples;
  std::vector<uint8_t> bytes;
  uint8_t* seen;
  Buffer<double> constants, log_scales;
  std::vector<accumulate_t<T>> each;  // −row_constant of each element, for the CPU

  Some(Likelihood<T>& s, int64_t examples_in, Random& random, bool all = false)
      : examples(examples_in),
        bytes(static_cast<size_t>(examples_in * s.size + (s.size % 3 == 1))),
        seen(bytes.data() + (s.size % 3 == 1)),
        constants(examples_in),
        log_scales(1 + s.shared_scale.size()) {
    for (int64_t i = 0; i < examples * s.size; ++i) {
      const int64_t n = i / s.size;
      // Any byte but 0 will do.
      seen[i] = all || n == 1 ? 1 : n == 0 ? 0 : random.uniform(0, 1) < 0.6 ? 0x80 : 0;
    }
    for (const auto scale : s.scale_table) {
      each.push_back(
          static_cast<accumulate_t<T>>(-row_constant(s.likelihood(), 1, std::log(scale))));
    }
    for (int64_t i = 0; i < s.params.size(); ++i) {
      const int64_t n = i / s.size / s.samples;
      if (sees(s, n, i % s.size)) continue;
      s.params[i] = make<T>(kInf);
      if (s.full_scale.size() > 0) s.full_scale[i] = make<T>(kInf);
      // An x may serve rows of several of the mask's.
      if (examples == s.examples) {
        s.x[n % s.examples * s.size + i % s.size] = static_cast<accumulate_t<T>>(kNaN);
      }
    }
  }
  bool sees(const Likelihood<T>& s, int64_t n, int64_t j) const {
    return seen[n % examples * s.size + j] != 0;
  }
  cpu::Mask host(const Likelihood<T>& s) const {
    const bool of_logs = s.shared() && has_log_scale(s.likelihood());
    return {seen, examples, s.size, of_logs ? each.data() : nullptr};
  }
  cuda::Mask device(const Likelihood<T>& s) {
    const bool shared = s.shared() && has_log_scale(s.likelihood());
    const int64_t count = shared ? s.shared_scale.size() : 0;
    cuda::Mask mask{seen, examples, nullptr};
    if (shared) {
      EXPECT_EQ(cuda::log_scale_sum(TypeOf<T>::dtype, s.shared_scale.data(), count, s.size,
                                    log_scales.data(), log_scales.data() + 1, nullptr),
                cudaSuccess);
    }
    EXPECT_EQ(cuda::row_constants(
                  s.likelihood(), mask, s.size, shared ? log_scales.data() : nullptr,
                  shared ? log_scales.data() + 1 : nullptr, count, constants.data(), nullptr),
              cudaSuccess);
    mask.constants = constants.data();
    return mask;
  }
};

template <class T>
cudaError_t run_on_device(Likelihood<T>& s, const cuda::Mask& mask, bool bias, Results<T>& to) {
  constexpr DType dtype = TypeOf<T>::dtype;
  cuda::LogWeights p = s.forward();
  p.mask = mask;
  p.log_w = to.log_w.data();
  if (bias) p.bias = s.bias_of_layer();
  if (const cudaError_t error = cuda::log_weights(s.likelihood(), dtype, s.kind(), p, nullptr)) {
    return error;
  }
  auto q = s.template device<cuda::Iwae>();
  q.mask = mask;
  q.bound = to.bound.data();
  q.log_w = to.weights.data();
  q.grad_params = to.d_params.data();
  q.grad_scale = to.d_scale.data();
  q.multiplier = -0.25;
  q.parts = 2;
  q.scale_parts = s.shared() ? to.scale_parts.data() : nullptr;
  return cuda::iwae(s.likelihood(), dtype, s.kind(), q, nullptr);
}

// The gradient of log_weights alone, with sums over rows if the scale is not full.
template <class T>
cudaError_t run_backward(Likelihood<T>& s, const cuda::Mask& mask, Results<T>& to) {
  cuda::LogWeightGrads p = s.backward();
  p.mask = mask;
  p.grad_params = to.d_params.data();
  p.grad_scale = to.d_scale.data();
  p.parts = 2;
  if (s.kind() != ScaleKind::kFull) {
    p.bias = s.bias_of_layer();
    p.bias_parts = to.bias_parts.data();
  }
  p.scale_parts = s.shared() ? to.scale_parts.data() : nullptr;
  return cuda::log_weights_backward(s.likelihood(), TypeOf<T>::dtype, s.kind(), p, nullptr);
}

template <class T>
void check_sums(const char* what, const Buffer<double>& parts, const std::vector<double>& wanted,
                double terms) {
  for (size_t j = 0; j < wanted.size(); ++j) {
    const double got =
        parts[static_cast<int64_t>(j)] + parts[static_cast<int64_t>(j + wanted.size())];
    const double relative = sizeof(T) == 8 ? 1e-13 : 4e-6;
    ASSERT_LE(std::abs(got - wanted[j]), relative * terms) << what << '[' << j << ']';
  }
}

template <class T>
void check(Likelihood<T>& s, int64_t examples, Random& random) {
  SCOPED_TRACE(s.name() + " mask of " + std::to_string(examples));
  Some<T> some(s, examples, random);
  const cpu::Mask host_mask = some.host(s);
  const cuda::Mask mask = some.device(s);
  Results<T> got(s, s.size % 3 == 1 ? 1 : 0), wanted(s);
  const double largest = (s.kind() == ScaleKind::kNone ? 2 : 300) * s.terms();
  std::vector<double> sums(static_cast<size_t>(whole_blocks(s.size)));
  double* to_sums = s.shared() ? sums.data() : nullptr;

  for (const bool bias : {false, true}) {
    if (bias && (s.kind() == ScaleKind::kFull || s.bias_of_layer() == nullptr)) continue;
    ASSERT_EQ(run_on_device(s, mask, bias, got), cudaSuccess);
    auto host = s.template host<LogWeightParams>();
    host.log_w = wanted.log_w.data();
    if (bias) host.bias = s.bias_of_layer();
    cpu::log_weights(&host_mask, s.likelihood(), TypeOf<T>::dtype, host, s.kind(), 0, s.rows());
    expect_close("log_w", got.log_w, wanted.log_w, s.terms());
  }
  auto host = s.template host<IwaeParams>();
  host.bound = wanted.bound.data();
  host.log_w = wanted.weights.data();
  host.grad_params = wanted.d_params.data();
  host.grad_scale = wanted.d_scale.data();
  host.multiplier = -0.25;
  cpu::iwae(&host_mask, s.likelihood(), TypeOf<T>::dtype, host, s.kind(), to_sums, 0,
            s.copies * s.examples);
  expect_close("bound", got.bound, wanted.bound, s.terms());
  expect_close("weights", got.weights, wanted.weights, 2 * s.terms());
  expect_close("params", got.d_params, wanted.d_params, largest);
  expect_close("scale", got.d_scale, wanted.d_scale, largest);
  sums.resize(static_cast<size_t>(s.shared() ? s.size : 0));
  check_sums<T>("scale sums", got.scale_parts, sums, largest * s.rows());

  ASSERT_EQ(run_backward(s, mask, got), cudaSuccess);
  auto host_grad = s.template host<LogWeightGradParams>();
  host_grad.grad_params = wanted.d_params.data();
  host_grad.grad_scale = wanted.d_scale.data();
  if (s.kind() != ScaleKind::kFull) host_grad.bias = s.bias_of_layer();
  sums.assign(static_cast<size_t>(whole_blocks(s.size)), 0);
  cpu::log_weights_backward(&host_mask, s.likelihood(), TypeOf<T>::dtype, host_grad, s.kind(),
                            to_sums, 0, s.rows());
  expect_close("params", got.d_params, wanted.d_params, largest);
  expect_close("scale", got.d_scale, wanted.d_scale, largest);
  sums.resize(static_cast<size_t>(s.shared() ? s.size : 0));
  check_sums<T>("scale sums", got.scale_parts, sums, largest * s.rows());
  for (int64_t i = 0; i < got.d_params.size(); ++i) {
    if (!some.sees(s, i / s.size / s.samples, i % s.size)) {
      ASSERT_EQ(got.d_params.at(i), 0.0);
    }
  }
  if (s.kind() == ScaleKind::kFull) return;
  std::vector<double> bias(static_cast<size_t>(s.size));
  for (int64_t i = 0; i < wanted.d_params.size(); ++i) {
    bias[static_cast<size_t>(i % s.size)] += wanted.d_params.at(i);
  }
  const double rounding = sizeof(T) == 2 ? TypeOf<T>::epsilon / 4e-6 : 1;
  check_sums<T>("bias sums", got.bias_parts, bias, largest * s.rows() * rounding);
}

// f of each likelihood and each kind of scale that it takes, until one fails.
template <class F>
void each_scaled(const F& f) {
  for (const LikelihoodKind kind :
       {LikelihoodKind::kBernoulli, LikelihoodKind::kGaussian, LikelihoodKind::kDiscretisedLogistic,
        LikelihoodKind::kNegativeBinomial, LikelihoodKind::kPoisson, LikelihoodKind::kLaplace,
        LikelihoodKind::kContinuousBernoulli, LikelihoodKind::kBernoulliProbabilities}) {
    for (const ScaleOf scale : kScales) {
      if (!takes(kind, scale)) continue;
      f(kind, scale);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// By element and in packs; a row a warp and four rows at once; in one kernel and, of a shared
// scale, in three; with a row of the mask for each example and one for several.
TYPED_TEST(Masked, Agrees) {
  using T = TypeParam;
  Random random(21);
  each_scaled([&](LikelihoodKind kind, ScaleOf scale) {
    for (const auto& [samples, size] : {std::pair{3, 65}, std::pair{1, 784}, std::pair{4, 48}}) {
      Device device;
      device->multiprocessors = samples == 4 ? 1 : 3;
      const int64_t examples = samples == 4 ? 33 : 4;
      Likelihood<T> s(examples, samples, size, scale, size % 3 == 1 ? 1 : 0, random, kind);
      check(s, size == 48 ? 3 : examples, random);
      if (testing::Test::HasFatalFailure()) return;
    }
  });
}

// Of one known element and of a row longer than a block's warps at once.
TYPED_TEST(Masked, SmallAndLong) {
  using T = TypeParam;
  Random random(22);
  for (const ScaleOf scale : kScales) {
    for (const auto& [samples, size] : {std::pair{37, 1}, std::pair{2, 2000}, std::pair{2, 1985}}) {
      Likelihood<T> s(3, samples, size, scale, 0, random);
      check(s, 3, random);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TYPED_TEST(Masked, OnesGiveTheSameBits) {
  using T = TypeParam;
  Random random(23);
  each_scaled([&](LikelihoodKind kind, ScaleOf scale) {
    for (const auto& [samples, size] : {std::pair{1, 2000}, std::pair{4, 48}, std::pair{37, 65}}) {
      Device device;
      device->multiprocessors = samples == 4 ? 1 : 3;
      Likelihood<T> s(samples == 4 ? 33 : 3, samples, size, scale, 0, random, kind);
      SCOPED_TRACE(s.name());
      Some<T> ones(s, s.examples, random, true);
      Results<T> got(s), wanted(s);
      ASSERT_EQ(run_on_device(s, ones.device(s), false, got), cudaSuccess);
      ASSERT_EQ(run_on_device(s, cuda::Mask{}, false, wanted), cudaSuccess);
      expect_same_bits("log_w", got.log_w, wanted.log_w);
      expect_same_bits("bound", got.bound, wanted.bound);
      expect_same_bits("weights", got.weights, wanted.weights);
      expect_same_bits("params", got.d_params, wanted.d_params);
      expect_same_bits("scale", got.d_scale, wanted.d_scale);
      expect_same_bits("scale sums", got.scale_parts, wanted.scale_parts);
      if (testing::Test::HasFatalFailure()) return;
    }
  });
}

// A weight that is NaN makes gradients NaN where something is known, and nowhere else.
TYPED_TEST(Masked, NaNStaysWhereItIsSeen) {
  using T = TypeParam;
  Random random(24);
  for (const ScaleOf scale : {ScaleOf::kNone, ScaleOf::kEach, ScaleOf::kFull}) {
    Likelihood<T> s(3, 2, 66, scale, 0, random);
    Some<T> some(s, 3, random);
    s.params[2 * s.samples * s.size] = make<T>(kNaN);
    some.seen[2 * s.size] = 1;
    some.seen[2 * s.size + 1] = 0;
    Results<T> got(s);
    ASSERT_EQ(run_on_device(s, some.device(s), false, got), cudaSuccess);
    EXPECT_TRUE(std::isnan(got.log_w.at(2 * s.samples)));
    EXPECT_TRUE(std::isnan(got.bound.at(2)));
    EXPECT_TRUE(std::isfinite(got.bound.at(0)) && std::isfinite(got.bound.at(1)));
    const int64_t row = 2 * s.samples * s.size;
    EXPECT_TRUE(std::isnan(got.d_params.at(row)));
    EXPECT_EQ(got.d_params.at(row + 1), 0.0);
    for (int64_t i = 0; i < s.samples * s.size; ++i) ASSERT_EQ(got.d_params.at(i), 0.0);
  }
}

TEST(MaskedCases, NothingKnown) {
  // Of scales of 0, inf and NaN too, a row's constant is 0.
  const double all[] = {-kInf, kInf, kNaN};
  for (const double log_scale : all) {
    const uint8_t seen[] = {0, 0, 0, 1, 1, 1};
    Buffer<double> out(2);
    ASSERT_EQ(cuda::row_constants(LikelihoodKind::kGaussian, {seen, 2, nullptr}, 3, &log_scale,
                                  &log_scale, 1, out.data(), nullptr),
              cudaSuccess);
    EXPECT_EQ(out[0], 0.0);
    EXPECT_FALSE(std::isfinite(out[1]));
  }
  const int64_t before = emulator::counts.launches;
  EXPECT_EQ(cuda::row_constants(LikelihoodKind::kGaussian, {nullptr, 0, nullptr}, 3, nullptr,
                                nullptr, 0, nullptr, nullptr),
            cudaSuccess);
  EXPECT_EQ(emulator::counts.launches, before);
}

}  // namespace
}  // namespace dvae::test
