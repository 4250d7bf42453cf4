// The operators over rows with the kind of scale and bias chosen at run time.
// Part of kernels.inl.

// Calls body with ScaleKind and "has bias" as compile-time constants, as far as L has them.
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

template <class L, class T>
void log_weights(const LogWeightParams& p, ScaleKind kind, int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, {
    if (p.bias != nullptr) {
      log_weights_as<L, T, K, true>(p, begin, end);
    } else {
      log_weights_as<L, T, K, false>(p, begin, end);
    }
  })
}

template <class L, class T>
void log_weights_backward(const LogWeightGradParams& p, ScaleKind kind, double* scale_sum,
                          int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, {
    if (p.bias != nullptr) {
      log_weights_backward_as<L, T, K, true>(p, scale_sum, begin, end);
    } else {
      log_weights_backward_as<L, T, K, false>(p, scale_sum, begin, end);
    }
  })
}

template <class L, class T>
void iwae_sweep(const IwaeParams& p, ScaleKind kind, int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, iwae_sweep_as<L, T, K>(p, begin, end))
}

template <class L, class T>
void iwae_scale(const IwaeParams& p, ScaleKind kind, double* scale_sum, int64_t begin,
                int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, iwae_scale_as<L, T, K>(p, scale_sum, begin, end))
}

// An example's K rows are read twice while they lie in L2.
template <class L, class T>
void iwae(const IwaeParams& p, ScaleKind kind, double* scale_sum, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const int64_t row = n * p.samples;
    iwae_sweep<L, T>(p, kind, row, row + p.samples);
    iwae_normalise<T>(p, n, n + 1);
    iwae_scale<L, T>(p, kind, scale_sum, row, row + p.samples);
  }
}
