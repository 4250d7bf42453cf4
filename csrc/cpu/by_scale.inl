// The operators over rows with the kind of scale and bias chosen at run time.
// Part of kernels.inl.

// The body with K, the kind of scale, as a compile-time constant, as far as L has it.
#define DVAE_WITH_SCALE(L, kind, K, ...)        \
  if constexpr (!L::kHasScale) {                \
    constexpr ScaleKind K = ScaleKind::kNone;   \
    __VA_ARGS__;                                \
  } else if ((kind) == ScaleKind::kFull) {      \
    constexpr ScaleKind K = ScaleKind::kFull;   \
    __VA_ARGS__;                                \
  } else {                                      \
    constexpr ScaleKind K = ScaleKind::kShared; \
    __VA_ARGS__;                                \
  }

// Whether the kernels over rows take a mask (masked.cpp): it makes as much code again.
#ifdef DVAE_VECTOR_BYTES
template <class T>
constexpr bool kTakesMask = std::is_same_v<T, float>;
#else
template <class T>
constexpr bool kTakesMask = false;
#endif

// body(std::true_type()) if there is a mask.
template <class T, class F>
DVAE_HD void with_mask(const DecoderParams& p, const F& body) {
  if constexpr (kTakesMask<T>) {
    if (p.seen != nullptr) return body(std::true_type{});
  }
  body(std::false_type{});
}
// Only tiles of a linear layer have a bias, of a light likelihood, and no scale an element.
template <class L, ScaleKind kScale, class F>
DVAE_HD void with_bias(const DecoderParams& p, const F& body) {
  if constexpr (L::kLight && kScale != ScaleKind::kFull) {
    if (p.bias != nullptr) return body(std::true_type{});
  }
  body(std::false_type{});
}

template <class L, class T>
void log_weights(const LogWeightParams& p, ScaleKind kind, int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, with_mask<T>(p, [&](auto m) {
                    with_bias<L, K>(
                        p, [&](auto b) { log_weights_as<L, T, K, b(), m()>(p, begin, end); });
                  }))
}

template <class L, class T>
void log_weights_backward(const LogWeightGradParams& p, ScaleKind kind, double* scale_sum,
                          int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, with_mask<T>(p, [&](auto m) {
                    with_bias<L, K>(p, [&](auto b) {
                      log_weights_backward_as<L, T, K, b(), m()>(p, scale_sum, begin, end);
                    });
                  }))
}

template <class L, class T>
void iwae_sweep(const IwaeParams& p, ScaleKind kind, int64_t begin, int64_t end) {
  if constexpr (kSweepLeavesDerivative<L, T>) {
    with_mask<T>(p, [&](auto m) { iwae_sweep_as<L, T, m()>(p, begin, end); });
  } else {
    log_weights<L, T>(p, kind, begin, end);
  }
}

template <class L, class T>
void iwae_scale(const IwaeParams& p, ScaleKind kind, double* scale_sum, int64_t begin,
                int64_t end) {
  if constexpr (kSweepLeavesDerivative<L, T>) {
    with_mask<T>(p, [&](auto m) { iwae_scale_as<T, m()>(p, begin, end); });
  } else {
    const LogWeightGradParams of{p, p.log_w, p.grad_params, p.grad_scale, p.multiplier};
    log_weights_backward<L, T>(of, kind, scale_sum, begin, end);
  }
}

// An example's K rows are read twice while they lie in L2; of short ones several examples', so that
// calls do not count.
template <class L, class T>
void iwae(const IwaeParams& p, ScaleKind kind, double* scale_sum, int64_t begin, int64_t end) {
  constexpr int64_t kElements = 8192;
  const int64_t example = p.samples * p.size;
  const int64_t step = example < kElements ? kElements / (example > 0 ? example : 1) : 1;
  for (int64_t n = begin; n < end; n += step) {
    const int64_t stop = min64(end, n + step), row = n * p.samples;
    iwae_sweep<L, T>(p, kind, row, stop * p.samples);
    iwae_normalise<T>(p, n, stop);
    iwae_scale<L, T>(p, kind, scale_sum, row, stop * p.samples);
  }
}
