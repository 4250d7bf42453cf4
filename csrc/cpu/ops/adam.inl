// The optimizer's step, of gradients that are still in cache.
// Part of kernels.inl.

template <class T>
double adam(const AdamParams& p, const void* grad, const AdamState& state, int64_t n) {
  const T* g = static_cast<const T*>(grad);
  T* parameter = static_cast<T*>(state.parameter);
  T* mean = static_cast<T*>(state.mean);
  T* square = static_cast<T*>(state.square);
  const T beta1 = static_cast<T>(p.beta1), beta2 = static_cast<T>(p.beta2);
  const T more1 = static_cast<T>(1 - p.beta1), more2 = static_cast<T>(1 - p.beta2);
  const T root_scale = static_cast<T>(p.root_scale), epsilon = static_cast<T>(p.epsilon);
  const T rate = static_cast<T>(p.rate), decay = static_cast<T>(p.decay);
  const T kept = static_cast<T>(p.kept), factor = static_cast<T>(p.factor);
  const bool behind = p.behind, decays = p.decay != 0;  // without it an infinite w stays as it is
  double total = 0;
  for (int64_t first = 0; first < n; first += kSumRows * kBlock) {
    alignas(64) T sum[kBlock] = {};
    for (int64_t i = first; i < min64(first + kSumRows * kBlock, n); i += kBlock) {
      const int64_t count = min64(kBlock, n - i);
#pragma GCC ivdep
      for (int64_t j = 0; j < count; ++j) {
        const T d = g[i + j], w = parameter[i + j];
        const T e = factor * d + (decays ? decay * w : T(0));
        sum[j] = sum[j] + d * d;
        const T before_m = mean[i + j], before_v = square[i + j];
        const T m = beta1 * before_m + more1 * e;
        const T v = beta2 * before_v + more2 * e * e;
        mean[i + j] = m;
        square[i + j] = v;
        const T by_m = behind ? before_m : m, by_v = behind ? before_v : v;
        parameter[i + j] = kept * w - rate * by_m / (sqrt(by_v) * root_scale + epsilon);
      }
    }
    for (int64_t j = 0; j < kBlock; ++j) total += static_cast<double>(sum[j]);
  }
  return total;
}
