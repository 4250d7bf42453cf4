// log p(x|z) of a row of decoder outputs, and its gradient, for the operators over rows.
// Part of kernels.inl.

// A row's sum: one pair of a likelihood's accumulators per lane, and what was taken from them in
// double. One float would lose of a long sum what it adds: of equal terms always in one direction,
// half a nat in 12,288 pixels.
template <class L, class A>
struct Lanes {
  static constexpr int64_t kFold = 16 * kLanes;   // elements between two calls of fold
  static constexpr int64_t kShort =
      64 * kLanes;  // a row of no more loses too little to fold at all
  // Lanes are never merged, so each may take in what four merged ones could (likelihoods.h).
  static constexpr int kFolds = 4 * L::kMaxPush * kLanes / kFold;
  alignas(64) A a[kLanes];
  alignas(64) A b[kLanes];
  alignas(64) double total[kLanes];
  bool folded = false;
  int sums = 0;

  DVAE_HD Lanes() {
    clear();
    fill(total, kLanes, 0.0);
  }
  DVAE_HD void fold() {
    folded = true;
    if constexpr (L::kProduct) {
      // Its logarithm is not taken more often than it must be.
      if (++sums < kFolds) {
        for (int i = 0; i < kLanes; ++i) total[i] += static_cast<double>(L::finish_sum(a[i]));
        fill(a, kLanes, A(0));
        return;
      }
    }
    for (int i = 0; i < kLanes; ++i) total[i] += static_cast<double>(L::finish(a[i], b[i]));
    clear();
  }
  DVAE_HD double finish() {
    alignas(64) A rest[kLanes];
    for (int i = 0; i < kLanes; ++i) rest[i] = L::finish(a[i], b[i]);
    const double sum = static_cast<double>(sum_lanes(rest));
    return folded ? sum_lanes(total) + sum : sum;
  }

 private:
  DVAE_HD void clear() {
    fill(a, kLanes, A(0));
    fill(b, kLanes, A(0));
    sums = 0;
  }
};

// Where one row (n, k) of the decoder output and of x lie.
template <class T>
struct RowView {
  using A = accumulate_t<T>;
  const T* params;
  const T* bias;
  const A* x;
  const A* shared_scale;
  int64_t scale_stride;
  const T* full_scale;
  const bits_t<A>* seen;

  // What likelihoods leave out an element by.
  template <bool kMasked>
  DVAE_HD auto keep(int64_t j) const {
    if constexpr (kMasked) {
      return Keep<A>{seen[j]};
    } else {
      return KeepAll{};
    }
  }
  template <bool kBias>
  DVAE_HD A param(int64_t j) const {
    return kBias ? load(params[j]) + load(bias[j]) : load(params[j]);
  }
  // Of element j + i, j a multiple of kLanes: a table's blocks have 64 elements.
  template <ScaleKind kScale>
  DVAE_HD A scale(int64_t j, int64_t i) const {
    return kScale == ScaleKind::kFull ? load(full_scale[j + i])
                                      : shared_scale[j / kTile * scale_stride + j % kTile + i];
  }
};

template <class T>
DVAE_HD RowView<T> row_view(const DecoderParams& p, int64_t row) {
  using A = accumulate_t<T>;
  const int64_t at_params = (row - p.first_row) * p.size;
  return {at<T>(p.params, at_params),
          static_cast<const T*>(p.bias),
          at<A>(p.x, row / p.samples % p.examples * p.size),
          static_cast<const A*>(p.scale),
          p.scale_stride,
          at<T>(p.scale, at_params),
          static_cast<const bits_t<A>*>(p.seen)};
}

// Calls body(i) for the n elements of a block; n = 64 with a constant trip count.
#define DVAE_FOR_BLOCK(n, body)                                     \
  if ((n) == kTile) {                                               \
    _Pragma("GCC ivdep") for (int i = 0; i < kBlock; ++i) body(i);  \
  } else {                                                          \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < (n); ++i) body(i); \
  }

// push(a, b, keep). AVX-512 has sums that leave out lanes: there the choice is between the sums.
template <bool kMasked, class A, class K, class F>
DVAE_HD void take_in(A& a, A& b, K keep, const F& push) {
#if defined(DVAE_VECTOR_BYTES) && DVAE_VECTOR_BYTES == 64
  if constexpr (kMasked) {
    A next_a = a, next_b = b;
    push(next_a, next_b, KeepAll{});
    a = keep.seen != 0 ? next_a : a;
    b = keep.seen != 0 ? next_b : b;
    return;
  }
#endif
  push(a, b, keep);
}

// log p(x|z) of one row. kDerivative: also leaves d log p / d logit in out. kMasked: of what was
// observed; what is made of the rest is left out, whatever it is, and its derivative is 0.
template <class L, class T, ScaleKind kScale, bool kBias, bool kMasked, bool kDerivative>
DVAE_HD accumulate_t<T> row_density(const DecoderParams& p, const RowView<T>& v, T* out) {
  using A = accumulate_t<T>;
  Lanes<L, A> lanes;
  const int64_t between = p.size <= lanes.kShort ? lanes.kShort : lanes.kFold;
  for (int64_t j = 0; j < p.size;) {
    const int64_t stop = min64(p.size, j + between);
    const auto push = [&](int64_t i) __attribute__((always_inline)) {
      const A param = v.template param<kBias>(j + i);
      const auto keep = v.template keep<kMasked>(j + i);
      const auto push_into = [&](A& a, A& b, auto kept) __attribute__((always_inline)) {
        if constexpr (L::kHasScale) {
          const A scale = v.template scale<kScale>(j, i);
          L::template push<kScale>(a, b, param, scale, v.x[j + i], kept);
        } else if constexpr (kDerivative) {
          store(out[j + i], keep(L::push_with_derivative(a, b, param, v.x[j + i], kept)));
        } else {
          L::push(a, b, param, v.x[j + i], kept);
        }
      };
      take_in<kMasked>(lanes.a[i], lanes.b[i], keep, push_into);
    };
    for (; j + kLanes <= stop; j += kLanes) {
#pragma GCC ivdep
      for (int i = 0; i < kLanes; ++i) push(i);
    }
    for (int64_t i = 0; i < stop - j; ++i) push(i);
    j = stop;
    if (j < p.size) lanes.fold();
  }
  const double log_scale = L::kHasLogScale && kScale == ScaleKind::kShared ? *p.log_scale : 0.0;
  return static_cast<A>(lanes.finish() + L::row_constant(kMasked ? p.count : p.size, log_scale));
}

// Σ of what the rows of an example have in common, made when rows come to another example.
template <class L, class T, ScaleKind kScale, bool kMasked>
struct DataTerm {
  using A = accumulate_t<T>;
  int64_t n = -1;
  A value = 0;

  DVAE_HD A of(const DecoderParams& p, const RowView<T>& v, int64_t row) {
    if constexpr (L::kHasDataTerm) {
      if (row / p.samples != n) {
        n = row / p.samples;
        value = sum(p, v);
      }
    }
    return value;
  }

 private:
  DVAE_HD static A sum(const DecoderParams& p, const RowView<T>& v) {
    double total = 0;
    for (int64_t j = 0; j < p.size;) {
      const int64_t stop = min64(p.size, j + 16 * kLanes);
      alignas(64) A lanes[kLanes] = {};
      const auto add = [&](int64_t i) __attribute__((always_inline)) {
        A scale = 1;
        if constexpr (kScale == ScaleKind::kShared) scale = v.template scale<kScale>(j, i);
        const auto keep = v.template keep<kMasked>(j + i);
        lanes[i] = lanes[i] + keep(L::template data_term<kScale>(scale, v.x[j + i]));
      };
      for (; j + kLanes <= stop; j += kLanes) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) add(i);
      }
      for (int64_t i = 0; i < stop - j; ++i) add(i);
      j = stop;
      total += static_cast<double>(sum_lanes(lanes));
    }
    return static_cast<A>(total);
  }
};

// Adds data_term's part of a shared scale's gradient, for all rows of an example at once.
template <class L, class T, ScaleKind kScale, bool kMasked>
struct DataGradient {
  using A = accumulate_t<T>;
  static constexpr bool kWanted = L::kHasDataTerm && kScale == ScaleKind::kShared;
  const DecoderParams& p;
  double* scale_sum;
  int64_t n = -1, row = 0;
  double weight = 0;  // Σ over the example's rows
  bool any = false;

  DVAE_HD void add(int64_t next, A w) {
    if constexpr (kWanted) {
      if (next / p.samples != n) {
        flush();
        n = next / p.samples;
        row = next;
      }
      weight += static_cast<double>(w);
      any = any || w != A(0);
    }
  }
  DVAE_HD void flush() {
    if constexpr (kWanted) {
      if (scale_sum != nullptr && any) {
        const RowView<T> v = row_view<T>(p, row);
        for (int64_t j = 0; j < p.size; j += kTile) {
          const int64_t size = min64(kTile, p.size - j);
          alignas(64) A d[kBlock];
          const auto element = [&](int64_t i) __attribute__((always_inline)) {
            const auto keep = v.template keep<kMasked>(j + i);
            d[i] = keep(L::data_derivative(v.template scale<kScale>(j, i), v.x[j + i]));
          };
          DVAE_FOR_BLOCK(size, element)
          for (int64_t i = 0; i < size; ++i) scale_sum[j + i] += weight * static_cast<double>(d[i]);
        }
      }
      weight = 0;
      any = false;
    }
  }
};

// out = weight · d log p / d params of one row (out may be the row itself), and the scale's.
template <class L, class T, ScaleKind kScale, bool kBias, bool kMasked>
DVAE_HD void row_gradient(const DecoderParams& p, const RowView<T>& v, accumulate_t<T> weight,
                          T* out, T* out_scale, double* scale_sum) {
  using A = accumulate_t<T>;
  if (weight == A(0)) {
    // A weight of 0 stops a non-finite derivative: 0 · inf would be NaN.
    for (int64_t j = 0; j < p.size; ++j) store(out[j], A(0));
    if constexpr (kScale == ScaleKind::kFull) {
      for (int64_t j = 0; j < p.size; ++j) store(out_scale[j], A(0));
    }
    return;
  }
  for (int64_t j = 0; j < p.size; j += kTile) {
    const int64_t n = min64(kTile, p.size - j);
    if constexpr (L::kHasScale) {
      alignas(64) A d_scale[kBlock];
      const auto element = [&](int64_t i) __attribute__((always_inline)) {
        A d_mean;
        L::template derivative<kScale>(v.template param<kBias>(j + i),
                                       v.template scale<kScale>(j, i), v.x[j + i], d_mean,
                                       d_scale[i]);
        const auto keep = v.template keep<kMasked>(j + i);
        store(out[j + i], keep(weight * d_mean));
        d_scale[i] = keep(weight * d_scale[i]);
      };
      DVAE_FOR_BLOCK(n, element)
      if constexpr (kScale == ScaleKind::kFull) {
        for (int64_t i = 0; i < n; ++i) store(out_scale[j + i], d_scale[i]);
      } else if (scale_sum != nullptr) {
        for (int64_t i = 0; i < n; ++i) scale_sum[j + i] += static_cast<double>(d_scale[i]);
      }
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        const A slope = L::derivative(v.template param<kBias>(j + i), v.x[j + i]);
        store(out[j + i], v.template keep<kMasked>(j + i)(weight * slope));
      }
    }
  }
}

template <class T>
DVAE_HD accumulate_t<T> ratio_of(const LogWeightParams& p, int64_t row) {
  using A = accumulate_t<T>;
  return p.log_ratio != nullptr ? *at<A>(p.log_ratio, row) : A(0);
}
