// The fused loss, step by step: a sweep over rows, and the scale of its gradient. Most likelihoods
// take their log-weights' kernels for that (by_scale.inl); here are those of one that leaves in the
// first sweep, where the dtype can hold it exactly enough, the bare derivative, so that the second
// is one multiplication instead of an exponential.
// Part of kernels.inl.

template <class L, class T>
constexpr bool kSweepLeavesDerivative = L::kPushDerives && sizeof(T) == sizeof(accumulate_t<T>);

template <class L, class T, bool kMasked>
void iwae_sweep_as(const IwaeParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  static_assert(!L::kHasScale && !L::kHasDataTerm);
  for (int64_t row = begin; row < end; ++row) {
    const A density = row_density<L, T, ScaleKind::kNone, false, kMasked, true>(
        p, row_view<T>(p, row), at<T>(p.grad_params, (row - p.first_row) * p.size));
    *at<A>(p.log_w, row) = ratio_of<T>(p, row) + density;
  }
}

template <class T, bool kMasked>
void iwae_scale_as(const IwaeParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const A weight = *at<A>(static_cast<const void*>(p.log_w), row) * static_cast<A>(p.multiplier);
    T* out = at<T>(p.grad_params, (row - p.first_row) * p.size);
    if (kMasked && !(abs(weight) <= largest<A>())) {
      // What was left out is 0 already; of such a weight it would be NaN.
      const RowView<T> v = row_view<T>(p, row);
      for (int64_t j = 0; j < p.size; ++j) {
        store(out[j], v.seen[j] != 0 ? weight * load(out[j]) : A(0));
      }
      continue;
    }
#pragma GCC ivdep
    for (int64_t j = 0; j < p.size; ++j) store(out[j], weight * load(out[j]));
  }
}
