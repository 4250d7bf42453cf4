// Sums over samples in log space: weights, log-mean-exp, and the streamed state.
// Part of kernels.inl.

// kWeights: leaves e^(v − max) in out.
template <class A, bool kWeights>
DVAE_HD MaxSum<A> max_and_sum(const A* v, int64_t n, A* out) {
  alignas(64) A top[kLanes];
  alignas(64) A sum[kLanes] = {};
  fill(top, kLanes, -infinity<A>());
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t m = min64(kLanes, n - j);
    for (int64_t i = 0; i < m; ++i) top[i] = v[j + i] > top[i] ? v[j + i] : top[i];
  }
  A max = top[0];
  for (int i = 1; i < kLanes; ++i) max = top[i] > max ? top[i] : max;
  // NaN compared false above, and shows up in the sum. A maximum of +inf, which needs each element
  // looked at, has a loop of its own: the choice inside would keep the usual one scalar.
  const auto accumulate = [&](auto term) __attribute__((always_inline)) {
    for (int64_t j = 0; j < n; j += kLanes) {
      const int64_t m = min64(kLanes, n - j);
#pragma GCC ivdep
      for (int64_t i = 0; i < m; ++i) {
        const A value = v[j + i];
        if constexpr (kWeights) out[j + i] = shifted_exp(value, max);
        sum[i] = sum[i] + term(value);
      }
    }
  };
  if (max == infinity<A>()) {
    accumulate([&](A value) __attribute__((always_inline)) { return sum_term(value, max); });
  } else {
    accumulate([&](A value) __attribute__((always_inline)) { return shifted_exp(value, max); });
  }
  return {max, sum_lanes(sum)};
}

template <class T>
void iwae_normalise(const IwaeParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    A* w = at<A>(p.log_w, row * p.samples);
    const MaxSum<A> s = max_and_sum<A, true>(w, p.samples, w);
    *at<A>(p.bound, row) = bound_of(s, p.samples);
    const A inverse = inverse_of(s);
    for (int64_t k = 0; k < p.samples; ++k) w[k] = w[k] * inverse;
  }
}

template <class T>
void logmeanexp(const LogMeanExpParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const A* v = at<A>(p.log_w, row * p.samples);
    *at<A>(p.bound, row) =
        bound_of(max_and_sum<A, false>(v, p.samples, static_cast<A*>(nullptr)), p.samples);
  }
}

// g w̃, w̃ = e^(v − max)/Σ e^(v − max). Not e^(v − bound)/K: the bound is rounded to its own size,
// which at −3000 nats is 1e-4 of every weight.
template <class T>
void logmeanexp_backward(const LogMeanExpParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const A grad = *at<A>(p.grad, row);
    A* out = at<A>(p.grad_log_w, row * p.samples);
    const MaxSum<A> s = max_and_sum<A, true>(at<A>(p.log_w, row * p.samples), p.samples, out);
    const A factor = grad * inverse_of(s);
    for (int64_t k = 0; k < p.samples; ++k) out[k] = grad == A(0) ? A(0) : factor * out[k];
  }
}

template <class T>
void lse_update(const double* state, const void* log_w, int64_t samples, double* out, int64_t begin,
                int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const A* v = at<A>(log_w, row * samples);
    LogSumExp chunk;
    bool nan = false;
    for (int64_t k = 0; k < samples; ++k) {
      const double w = static_cast<double>(v[k]);
      chunk.max = w > chunk.max ? w : chunk.max;
      nan = nan || w != w;
    }
    if (nan) chunk.max = quiet_nan<double>();
    for (int64_t k = 0; k < samples; ++k) add_below_maximum(chunk, static_cast<double>(v[k]));
    LogSumExp s = LogSumExp::read(state + row * LogSumExp::kSize);
    if (samples > 0) s.merge(chunk);
    s.write(out + row * LogSumExp::kSize);
  }
}
