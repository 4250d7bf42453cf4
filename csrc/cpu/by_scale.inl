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

// Calls body with two conditions as compile-time constants.
template <class F>
DVAE_HD void with_constants(bool a, bool b, const F& body) {
  if (a && b) {
    body(std::true_type{}, std::true_type{});
  } else if (a) {
    body(std::true_type{}, std::false_type{});
  } else if (b) {
    body(std::false_type{}, std::true_type{});
  } else {
    body(std::false_type{}, std::false_type{});
  }
}

template <class L, class T>
void log_weights(const LogWeightParams& p, ScaleKind kind, int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K,
                  with_constants(p.bias != nullptr, p.seen != nullptr, [&](auto b, auto m) {
                    log_weights_as<L, T, K, decltype(b)::value, decltype(m)::value>(p, begin, end);
                  }))
}

template <class L, class T>
void log_weights_backward(const LogWeightGradParams& p, ScaleKind kind, double* scale_sum,
                          int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K,
                  with_constants(p.bias != nullptr, p.seen != nullptr, [&](auto b, auto m) {
                    log_weights_backward_as<L, T, K, decltype(b)::value, decltype(m)::value>(
                        p, scale_sum, begin, end);
                  }))
}

template <class L, class T>
void iwae_sweep(const IwaeParams& p, ScaleKind kind, int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, {
    if (p.seen != nullptr) {
      iwae_sweep_as<L, T, K, true>(p, begin, end);
    } else {
      iwae_sweep_as<L, T, K, false>(p, begin, end);
    }
  })
}

template <class L, class T>
void iwae_scale(const IwaeParams& p, ScaleKind kind, double* scale_sum, int64_t begin,
                int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, {
    if (p.seen != nullptr) {
      iwae_scale_as<L, T, K, true>(p, scale_sum, begin, end);
    } else {
      iwae_scale_as<L, T, K, false>(p, scale_sum, begin, end);
    }
  })
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
