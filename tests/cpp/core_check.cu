// Compiled, never run: every formula of csrc/core in device code, for each type a kernel uses.
// What does not compile cleanly here would not in a kernel.
#include "../../csrc/core/corruptions.h"
#include "../../csrc/core/half.h"
#include "../../csrc/core/latent.h"
#include "../../csrc/core/likelihoods.h"
#include "../../csrc/core/logsumexp.h"
#include "../../csrc/core/math.h"
#include "../../csrc/core/mean_exp.h"
#include "../../csrc/core/noise.h"
#include "../../csrc/core/params.h"
#include "../../csrc/core/philox.h"

namespace dvae {
namespace {

__global__ void noise(const uint32_t* in, int64_t seed, uint32_t* words, float* normals,
                      double* normals64) {
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t w[4];
  noise_lane(blockIdx.x, lane, in[0], in[1], stream_word(kStreamLatent, in[2]), key_from_seed(seed),
             w[0], w[1], w[2], w[3]);
  for (int i = 0; i < 4; ++i) words[i * kLanes + lane] = w[i];
  normal_pair(w[0], w[1], normals[lane], normals[kLanes + lane]);
  normal_pair(w[2], w[3], normals64[lane], normals64[kLanes + lane]);
}

template <class A>
__global__ void math(const A* in, A* out) {
  const A x = in[threadIdx.x];
  A* o = out + 16 * threadIdx.x;
  o[0] = exp(x);
  o[1] = exp_nonpositive(x);
  o[2] = log(x);
  o[3] = log1p(x);
  o[4] = sqrt(x);
  o[5] = abs(x);
  o[6] = softplus(x);
  o[7] = sigmoid(x);
  o[8] = infinity<A>();
  o[9] = quiet_nan<A>();
  o[12] = one_minus_exp(x);
  sincos_turn(bit_cast<uint32_t>(static_cast<float>(x)), o[10], o[11]);
}

__global__ void thresholds(const float* in, const uint32_t* words, int32_t* out, float* logs) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = uniform24(words[i]) < threshold(in[i]) ? 1 : 0;
  logs[i] = log_uniform(words[i]);
}

template <class T>
__global__ void halves(const T* in, T* out) {
  store(out[threadIdx.x], accumulate_t<T>(2) * load(in[threadIdx.x]));
}

template <class C, class A>
__global__ void discrete(const A* in, const int32_t* u, const int32_t* table, A* out) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = C::apply(in[i], u[i], table[0], table[1]) + C::derivative(in[i], u[i], table[0]);
}

template <class A>
__global__ void gaussian_corruption(const A* in, const A* normal, A std, A* out) {
  const int i = static_cast<int>(threadIdx.x);
  out[i] = AdditiveGaussian::apply(in[i], normal[i], std);
}

template <class A>
__global__ void latent(const A* in, A* out) {
  A mean = 0, log_var = 0, d_mean = 0, d_log_var = 0;
  DiagonalNormal::accumulate_gradient(in[0], in[1], in[2], in[3], mean, log_var);
  out[0] = DiagonalNormal::log_ratio(in[0], in[1], in[2]);
  out[1] = DiagonalNormal::log_ratio_at(in[0], in[1], in[2], in[3]);
  out[2] = DiagonalNormal::log_ratio_at_gradient(in[0], in[1], in[2], in[3], d_mean, d_log_var);
  out[3] = mean + log_var;
  out[4] = d_mean + d_log_var;
}

template <class A>
__global__ void mixture(const A* in, A* out) {
  A noise = 0, squares = 0;
  out[0] = DiagonalNormal::standardise(in[0], in[1], in[2]);
  out[1] = DiagonalNormal::log_ratio_of_sums(out[0], in[3], in[4]);
  out[2] = DiagonalNormal::accumulate_component(in[0], in[1], in[2], in[3], noise, squares);
  out[3] = DiagonalNormal::component_mean_gradient(noise, in[3]);
  out[4] = DiagonalNormal::component_log_var_gradient(in[0], squares);
}

template <class A>
__global__ void bernoulli(const A* logits, const A* x, A* out) {
  const int i = static_cast<int>(threadIdx.x);
  A a = 0, b = 0, a2 = 0, b2 = 0;
  out[0] = Bernoulli::push_with_derivative(a, b, logits[i], x[i]);
  out[1] = Bernoulli::push(a2, b2, logits[i + 1], x[i + 1]);
  Bernoulli::merge(a, b, a2, b2);
  out[2] = Bernoulli::finish(a, b);
  out[3] = Bernoulli::derivative(logits[i], x[i]);
}

template <class L, class A>
__global__ void without_scale(const A* param, const A* x, A* out) {
  const int i = static_cast<int>(threadIdx.x);
  A a = 0, b = 0;
  out[0] = L::push_with_derivative(a, b, param[i], x[i]);
  out[1] = L::finish(a, b) + L::template data_term<ScaleKind::kNone>(A(1), x[i]);
}

template <class L, class A>
__global__ void with_scale(const A* mean, const A* scale, const A* x, A* out) {
  const int i = static_cast<int>(threadIdx.x);
  A a = 0, b = 0, a2 = 0, b2 = 0;
  L::template push<ScaleKind::kFull>(a, b, mean[i], scale[i], x[i]);
  L::template push<ScaleKind::kShared>(a2, b2, mean[i + 1], scale[i + 1], x[i + 1]);
  L::merge(a, b, a2, b2);
  out[0] = L::finish(a, b) + L::template data_term<ScaleKind::kShared>(scale[i], x[i]) +
           static_cast<A>(L::row_constant(1, 0));
  L::template derivative<ScaleKind::kFull>(mean[i], scale[i], x[i], out[1], out[2]);
}

__global__ void logsumexp(const double* log_w, double* out) {
  LogSumExp one, two;
  one.push(log_w[0]);
  two.push(log_w[1]);
  one.merge(two);
  out[0] = one.max;
  out[1] = one.s1;
  out[2] = one.s2;
  out[3] = one.sum;
  add_below_maximum(one, log_w[2]);
  out[4] = one.count;
}

template <class A>
__global__ void mean_exp(const A* v, A* out) {
  const MaxSum<A> s = {v[0], sum_term(v[0], v[0]) + sum_term(v[1], v[0])};
  out[0] = bound_of(s, 2);
  out[1] = shifted_exp(v[1], s.max) * inverse_of(s);
}

// Taking the addresses instantiates the templates.
[[maybe_unused]] const void* const kInstances[] = {
    reinterpret_cast<const void*>(&math<float>),
    reinterpret_cast<const void*>(&math<double>),
    reinterpret_cast<const void*>(&halves<float>),
    reinterpret_cast<const void*>(&halves<double>),
    reinterpret_cast<const void*>(&halves<BFloat16>),
    reinterpret_cast<const void*>(&halves<Half>),
    reinterpret_cast<const void*>(&discrete<Masking, float>),
    reinterpret_cast<const void*>(&discrete<SaltAndPepper, float>),
    reinterpret_cast<const void*>(&discrete<BitFlip, double>),
    reinterpret_cast<const void*>(&gaussian_corruption<float>),
    reinterpret_cast<const void*>(&gaussian_corruption<double>),
    reinterpret_cast<const void*>(&latent<float>),
    reinterpret_cast<const void*>(&latent<double>),
    reinterpret_cast<const void*>(&mixture<float>),
    reinterpret_cast<const void*>(&mixture<double>),
    reinterpret_cast<const void*>(&bernoulli<float>),
    reinterpret_cast<const void*>(&bernoulli<double>),
    reinterpret_cast<const void*>(&without_scale<Poisson, float>),
    reinterpret_cast<const void*>(&without_scale<Poisson, double>),
    reinterpret_cast<const void*>(&without_scale<BernoulliProbabilities, float>),
    reinterpret_cast<const void*>(&without_scale<BernoulliProbabilities, double>),
    reinterpret_cast<const void*>(&without_scale<ContinuousBernoulli, float>),
    reinterpret_cast<const void*>(&without_scale<ContinuousBernoulli, double>),
    reinterpret_cast<const void*>(&with_scale<Gaussian, float>),
    reinterpret_cast<const void*>(&with_scale<Gaussian, double>),
    reinterpret_cast<const void*>(&with_scale<Laplace, float>),
    reinterpret_cast<const void*>(&with_scale<Laplace, double>),
    reinterpret_cast<const void*>(&with_scale<DiscretisedLogistic, float>),
    reinterpret_cast<const void*>(&with_scale<DiscretisedLogistic, double>),
    reinterpret_cast<const void*>(&with_scale<NegativeBinomial, float>),
    reinterpret_cast<const void*>(&with_scale<NegativeBinomial, double>),
    reinterpret_cast<const void*>(&mean_exp<float>),
    reinterpret_cast<const void*>(&mean_exp<double>),
    reinterpret_cast<const void*>(&noise),
    reinterpret_cast<const void*>(&thresholds),
    reinterpret_cast<const void*>(&logsumexp),
};

}  // namespace
}  // namespace dvae
