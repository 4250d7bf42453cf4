// A zero-inflated negative binomial: log-weights of rows, and their gradient.
// Part of kernels.inl.

// Of x (and a scale that rows share) alone, made once for all rows of an example: what log p has of
// it, or its derivative in the scale.
template <class T, ScaleKind kScale, bool kDerivative>
void zero_inflated_data(const DecoderParams& p, const RowView<T>& v, accumulate_t<T>* data) {
  using L = NegativeBinomial;
  Scales<T, kScale == ScaleKind::kFull ? ScaleKind::kNone : kScale> scales(v);
  for_groups<false>(
      v, 0, p.size, p.size,
      [&](int64_t j, int64_t n) __attribute__((always_inline)) { scales.take(j, n); },
      [&](int64_t j, int64_t i, auto, bool) __attribute__((always_inline)) {
        if constexpr (kDerivative) {
          data[j + i] = L::data_derivative(scales.of(j, i), v.x[j + i]);
        } else {
          data[j + i] = L::template data_term<kScale>(scales.of(j, i), v.x[j + i]);
        }
      },
      Nothing{});
}

// Element j + i, given log p(x) of the negative binomial besides `data`.
template <class T, ScaleKind kScale>
DVAE_HD ZeroInflated<accumulate_t<T>> zero_inflated_element(const Operands<T, kScale, false>& given,
                                                            const T* logits,
                                                            const accumulate_t<T>* data, int64_t j,
                                                            int64_t i) {
  using A = accumulate_t<T>;
  const A mean = given.param(j, i);
  A a = nan_if<A>(mean < A(0)), b = 0;
  NegativeBinomial::push<kScale>(a, b, mean, given.scale(j, i), given.v.x[j + i]);
  return {NegativeBinomial::finish(a, b) + data[j + i], load(logits[j + i])};
}

template <class T, ScaleKind kScale>
void zero_inflated_as(const ZeroInflatedParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  A* data = static_cast<A*>(p.data);
  int64_t n = -1;
  for (int64_t row = begin; row < end; ++row) {
    const RowView<T> v = row_view<T>(p, row);
    Operands<T, kScale, false> given(v);
    const auto take = [&](int64_t j, int64_t n)
                          __attribute__((always_inline)) { given.take(j, n); };
    const T* logits = at<T>(p.logits, row * p.size);
    if (row / p.samples != n) {
      n = row / p.samples;
      zero_inflated_data<T, kScale, false>(p, v, data);
    }
    double total = 0;
    for (int64_t j = 0; j < p.size;) {
      const int64_t stop = min64(p.size, j + 16 * kLanes);
      alignas(64) A lanes[kLanes] = {};
      const auto add = [&](int64_t at, int64_t i, auto keep, bool) __attribute__((always_inline)) {
        const auto of = zero_inflated_element<T, kScale>(given, logits, data, at, i);
        lanes[i] = lanes[i] + keep(of.log_prob(v.x[at + i]));
      };
      for_groups<true>(v, j, stop, p.size, take, add, Nothing{});
      j = stop;
      total += static_cast<double>(sum_lanes(lanes));
    }
    *at<A>(p.log_w, row) = *at<A>(p.log_ratio, row) + static_cast<A>(total);
  }
}

template <class T, ScaleKind kScale>
void zero_inflated_backward_as(const ZeroInflatedParams& p, double* scale_sum, int64_t begin,
                               int64_t end) {
  using A = accumulate_t<T>;
  using L = NegativeBinomial;
  A* data = static_cast<A*>(p.data);
  A* slope = data + p.size;
  int64_t n = -1;
  for (int64_t row = begin; row < end; ++row) {
    const RowView<T> v = row_view<T>(p, row);
    Operands<T, kScale, false> given(v);
    const auto take = [&](int64_t j, int64_t n)
                          __attribute__((always_inline)) { given.take(j, n); };
    const T* logits = at<T>(p.logits, row * p.size);
    const A weight = *at<A>(p.grad, row);
    T* to_mean = at<T>(p.grad_params, row * p.size);
    T* to_scale = at<T>(p.grad_scale, row * p.size);
    T* to_logits = at<T>(p.grad_logits, row * p.size);
    Made<T> mean_made(to_mean), logits_made(to_logits);
    if (weight == A(0)) {
      // A weight of 0 stops a non-finite derivative: 0 · inf would be NaN.
      fill(to_mean, p.size, T(0));
      fill(to_logits, p.size, T(0));
      if constexpr (kScale == ScaleKind::kFull) fill(to_scale, p.size, T(0));
      continue;
    }
    if (row / p.samples != n) {
      n = row / p.samples;
      zero_inflated_data<T, kScale, false>(p, v, data);
      if constexpr (kScale == ScaleKind::kShared) {
        zero_inflated_data<T, kScale, true>(p, v, slope);
      }
    }
    alignas(64) A d_scale[kLanes];
    for_groups<true>(
        v, 0, p.size, p.size, take,
        [&](int64_t j, int64_t i, auto keep, bool fresh) __attribute__((always_inline)) {
          const A x = v.x[j + i], logit = load(logits[j + i]);
          const A mean = given.param(j, i);
          const auto of = zero_inflated_element<T, kScale>(given, logits, data, j, i);
          A d_mean, d;
          L::template derivative<kScale>(mean, given.scale(j, i), x, d_mean, d);
          d_mean = d_mean + nan_if<A>(mean < A(0));
          if constexpr (kScale == ScaleKind::kShared) d = d + slope[j + i];
          // A share of 0 stops a derivative that is not finite.
          const A share = of.share(x);
          d_mean = share == A(0) ? A(0) : share * d_mean;
          d = share == A(0) ? A(0) : share * d;
          mean_made.put(j, i, keep(weight * d_mean), fresh);
          logits_made.put(j, i, keep(weight * of.derivative(logit, x)), fresh);
          d_scale[i] = keep(weight * d);
        },
        [&](int64_t j, int64_t i, int64_t n) __attribute__((always_inline)) {
          if constexpr (kScale == ScaleKind::kFull) {
            DVAE_SHORT_LOOP for (; i < n; ++i) to_scale[j + i] = d_scale[i];
          } else if (scale_sum != nullptr) {
            DVAE_SHORT_LOOP for (; i < n; ++i) scale_sum[j + i] += static_cast<double>(d_scale[i]);
          }
        });
  }
}

template <class T>
void zero_inflated(const ZeroInflatedParams& p, ScaleKind kind, int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(NegativeBinomial, kind, K, zero_inflated_as<T, K>(p, begin, end))
}
template <class T>
void zero_inflated_backward(const ZeroInflatedParams& p, ScaleKind kind, double* scale_sum,
                            int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(NegativeBinomial, kind, K,
                  zero_inflated_backward_as<T, K>(p, scale_sum, begin, end))
}
