// Log-weights of rows, and their gradient.
// Part of kernels.inl.

template <class L, class T, ScaleKind kScale, bool kBias, bool kMasked, bool kOfElement>
void log_weights_of_rows(const LogWeightParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  DataTerm<L, T, kScale, kMasked> data;
  for (int64_t row = begin; row < end; ++row) {
    const RowView<T> v = row_view<T>(p, row);
    const A density = row_density<L, T, kScale, kBias, kMasked, false, kOfElement>(
        p, v, static_cast<T*>(nullptr));
    *at<A>(p.log_w, row) = ratio_of<T>(p, row) + (density + data.of(p, v, row));
  }
}

template <class L, class T, ScaleKind kScale, bool kBias, bool kMasked>
void log_weights_as(const LogWeightParams& p, int64_t begin, int64_t end) {
  if constexpr (kSumsConstants<L, kScale, kMasked>) {
    if (!DataTerm<L, T, kScale, kMasked>::has_constants(p)) {
      return log_weights_of_rows<L, T, kScale, kBias, kMasked, true>(p, begin, end);
    }
  }
  log_weights_of_rows<L, T, kScale, kBias, kMasked, false>(p, begin, end);
}

template <class L, class T, ScaleKind kScale, bool kBias, bool kMasked>
void log_weights_backward_as(const LogWeightGradParams& p, double* scale_sum, int64_t begin,
                             int64_t end) {
  using A = accumulate_t<T>;
  DataGradient<L, T, kScale, kMasked> data{p, scale_sum};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t to = (row - p.first_row) * p.size;
    const A weight = *at<A>(p.grad, row) * static_cast<A>(p.multiplier);
    row_gradient<L, T, kScale, kBias, kMasked>(p, row_view<T>(p, row), weight,
                                               at<T>(p.grad_params, to), at<T>(p.grad_scale, to),
                                               scale_sum);
    data.add(row, weight);
  }
  data.flush();
}
