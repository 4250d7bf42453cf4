// The fused loss, step by step: a sweep over rows, and the scale of its gradient.
// Part of kernels.inl.

// First sweep of the fused loss: log-weights, and where the dtype can hold it exactly enough the
// bare derivative, so that the second sweep is one multiplication instead of an exponential.
template <class L, class T>
constexpr bool kSweepLeavesDerivative = L::kPushDerives && sizeof(T) == sizeof(accumulate_t<T>);

template <class L, class T, ScaleKind kScale, bool kMasked>
void iwae_sweep_as(const IwaeParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  DataTerm<L, T, kScale, kMasked> data;
  for (int64_t row = begin; row < end; ++row) {
    const RowView<T> v = row_view<T>(p, row);
    const A density = row_density<L, T, kScale, false, kMasked, kSweepLeavesDerivative<L, T>>(
        p, v, at<T>(p.grad_params, (row - p.first_row) * p.size));
    *at<A>(p.log_w, row) = ratio_of<T>(p, row) + (density + data.of(p, v, row));
  }
}

template <class L, class T, ScaleKind kScale, bool kMasked>
void iwae_scale_as(const IwaeParams& p, double* scale_sum, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  DataGradient<L, T, kScale, kMasked> data{p, scale_sum};
  for (int64_t row = begin; row < end; ++row) {
    const A weight = *at<A>(static_cast<const void*>(p.log_w), row) * static_cast<A>(p.multiplier);
    data.add(row, weight);
    T* out = at<T>(p.grad_params, (row - p.first_row) * p.size);
    const RowView<T> v = row_view<T>(p, row);
    if constexpr (kSweepLeavesDerivative<L, T>) {
      if (kMasked && !(abs(weight) <= largest<A>())) {
        // What was left out is 0 already; of such a weight it would be NaN.
        for (int64_t j = 0; j < p.size; ++j) {
          store(out[j], v.seen[j] != 0 ? weight * load(out[j]) : A(0));
        }
        continue;
      }
#pragma GCC ivdep
      for (int64_t j = 0; j < p.size; ++j) store(out[j], weight * load(out[j]));
    } else {
      row_gradient<L, T, kScale, false, kMasked>(
          p, v, weight, out, at<T>(p.grad_scale, (row - p.first_row) * p.size), scale_sum);
    }
  }
  data.flush();
}
