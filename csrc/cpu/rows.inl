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
  const uint8_t* seen;
  const A* row_constants;

  // Of elements j + i, i < kTile: one serves all in a block of as many. Asked for before a loop
  // over i, in which GCC 12 would look for each element's place.
  DVAE_HD const A* scales(int64_t j) const { return shared_scale + (scale_stride != 0 ? j : 0); }
  DVAE_HD const A* constants(int64_t j) const {
    return row_constants + (scale_stride != 0 ? j : 0);
  }
};

template <class T>
DVAE_HD RowView<T> row_view(const DecoderParams& p, int64_t row) {
  using A = accumulate_t<T>;
  const int64_t at_params = (row - p.first_row) * p.size;
  const int64_t n = row / p.samples;
  return {at<T>(p.params, at_params),
          static_cast<const T*>(p.bias),
          at<A>(p.x, n % p.examples * p.size),
          static_cast<const A*>(p.scale),
          p.scale_stride,
          at<T>(p.scale, at_params),
          p.seen != nullptr ? p.seen + n % p.seen_examples * p.size : nullptr,
          static_cast<const A*>(p.row_constants)};
}

// Of a short loop over one group: GCC 12 takes it apart into elements before it can vectorise it.
#define DVAE_SHORT_LOOP _Pragma("GCC unroll 1") _Pragma("GCC ivdep")

// Calls element(j, i, keep, fresh) for the elements j + i of [begin, end) in a row of `size`;
// before each group of kLanes take(j, n), of n of them, and after it done(j, first, n), for the i
// of [first, n) of it; end is the row's, or whole groups behind begin.
//
// noexcept, for to GCC an intrinsic is a call that may throw, and a loop that may end so keeps its
// sums in memory.
//
// A row's end that is no whole group is taken as the group that ends there, of which those elements
// are fresh that no other group had, and the rest kept out: one after another they would take
// longer than all before them. Of double, whose functions are libm's, they would not.
template <bool kMasked, class Bytes = GivenMask, class T, class H, class F, class G>
DVAE_HD void for_groups(const RowView<T>& v, int64_t begin, int64_t end, int64_t size,
                        const H& take, const F& element, const G& done) noexcept {
  using A = accumulate_t<T>;
  int64_t j = begin;
  if constexpr (kMasked) {
    while (j + kLanes <= end) {
      const int64_t first = j, stop = j + min64(Bytes::kMost, (end - j) / kLanes * kLanes);
      const Bytes bytes(v.seen + first, stop - first);
      for (; j < stop; j += kLanes) {
        DVAE_ONE_BY_ONE;
        take(j, kLanes);
        const GroupMask<A> mask(bytes, j - first);
        DVAE_SHORT_LOOP for (int i = 0; i < kLanes; ++i) element(j, i, mask.keep(i), true);
        done(j, 0, kLanes);
      }
    }
  } else {
    for (; j + kLanes <= end; j += kLanes) {
      DVAE_ONE_BY_ONE;  // GCC 12 would jam the loops of two groups into one that it can't vectorise
      take(j, kLanes);
      DVAE_SHORT_LOOP for (int i = 0; i < kLanes; ++i) element(j, i, KeepAll{}, true);
      done(j, 0, kLanes);
    }
  }
  if (j == end) return;
  const int64_t left = end - j;
  if (sizeof(A) == 4 && size >= kLanes) {
    static constexpr uint8_t kFresh[2 * kLanes] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                                   1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const GroupMask<A> fresh(kFresh + left, kFresh + left);
    j = end - kLanes;
    take(j, kLanes);
    const GroupMask<A> mask(kFresh + left, kMasked ? v.seen + j : kFresh + left);
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) element(j, i, mask.keep(i), fresh.seen[i] != 0);
    done(j, kLanes - left, kLanes);
    return;
  }
  take(j, left);
  if constexpr (kMasked) {
    const GroupMask<A> mask(v.seen + j, left);
    for (int64_t i = 0; i < left; ++i) {
      DVAE_ONE_BY_ONE;
      element(j, i, mask.keep(i), true);
    }
  } else {
    for (int64_t i = 0; i < left; ++i) {
      DVAE_ONE_BY_ONE;
      element(j, i, KeepAll{}, true);
    }
  }
  done(j, 0, left);
}
struct Nothing {
  DVAE_HD void operator()(int64_t, int64_t) const {}
  DVAE_HD void operator()(int64_t, int64_t, int64_t) const {}
};

// The scales of a row's elements, after take(j, n) of [j, j + n).
template <class T, ScaleKind kScale>
struct Scales {
  using A = accumulate_t<T>;
  const RowView<T>& v;
  Read<T> full;
  const A* shared = nullptr;

  DVAE_HD explicit Scales(const RowView<T>& view) : v(view), full(view.full_scale) {}
  DVAE_HD void take(int64_t j, int64_t n) {
    if constexpr (kScale == ScaleKind::kFull) full.take(j, n);
    if constexpr (kScale == ScaleKind::kShared) shared = v.scales(j);
  }
  DVAE_HD A of(int64_t j, int64_t i) const {
    if constexpr (kScale == ScaleKind::kFull) return full.of(j, i);
    return kScale == ScaleKind::kShared ? shared[i] : A(1);
  }
};

// The same, and the params, with the bias of a layer.
template <class T, ScaleKind kScale, bool kBias>
struct Operands {
  using A = accumulate_t<T>;
  const RowView<T>& v;
  Scales<T, kScale> scales;
  Read<T> params, bias;

  DVAE_HD explicit Operands(const RowView<T>& view)
      : v(view), scales(view), params(view.params), bias(view.bias) {}
  DVAE_HD void take(int64_t j, int64_t n) {
    scales.take(j, n);
    params.take(j, n);
    if constexpr (kBias) bias.take(j, n);
  }
  DVAE_HD A param(int64_t j, int64_t i) const {
    return kBias ? params.of(j, i) + bias.of(j, i) : params.of(j, i);
  }
  DVAE_HD A scale(int64_t j, int64_t i) const { return scales.of(j, i); }
};

// push(a, b, keep). AVX-512 has sums that leave out lanes: there the choice is between the sums.
template <class A, class K, class F>
DVAE_HD void take_in(A& a, A& b, K keep, const F& push) {
#if defined(DVAE_VECTOR_BYTES) && DVAE_VECTOR_BYTES == 64
  if constexpr (!std::is_same_v<K, KeepAll>) {
    A next_a = a, next_b = b;
    push(next_a, next_b, KeepAll{});
    a = keep.seen != 0 ? next_a : a;
    b = keep.seen != 0 ? next_b : b;
    return;
  }
#endif
  push(a, b, keep);
}

// Whether row_constant is a sum over what a mask has observed of a scale that rows share.
template <class L, ScaleKind kScale, bool kMasked>
constexpr bool kSumsConstants = kMasked && L::kHasLogScale && kScale == ScaleKind::kShared;

// log p(x|z) of one row. kDerivative: also leaves d log p / d logit in out. kMasked: of what was
// observed; what is made of the rest is left out, whatever it is, and its derivative is 0; and
// row_constant is DataTerm's, but that kOfElement has the sum of constants in b.
template <class L, class T, ScaleKind kScale, bool kBias, bool kMasked, bool kDerivative,
          bool kOfElement = false>
DVAE_HD accumulate_t<T> row_density(const DecoderParams& p, const RowView<T>& v, T* out) {
  using A = accumulate_t<T>;
  Lanes<L, A> lanes;
  Operands<T, kScale, kBias> of(v);
  Made<T> made(out);
  [[maybe_unused]] const A* constants = nullptr;
  const int64_t between = p.size <= lanes.kShort ? lanes.kShort : lanes.kFold;
  const auto push = [&](int64_t j, int64_t i, auto keep,
                        [[maybe_unused]] bool fresh) __attribute__((always_inline)) {
    const A param = of.param(j, i);
    take_in(lanes.a[i], lanes.b[i], keep,
            [&](A& a, A& b, auto kept) __attribute__((always_inline)) {
              if constexpr (L::kHasScale) {
                const A scale = of.scale(j, i);
                L::template push<kScale>(a, b, param, scale, v.x[j + i], kept);
                if constexpr (kOfElement) b = b + kept(constants[i]);
              } else if constexpr (kDerivative) {
                const A derivative = keep(L::push_with_derivative(a, b, param, v.x[j + i], kept));
                made.put(j, i, derivative, fresh);
              } else {
                L::push(a, b, param, v.x[j + i], kept);
              }
            });
  };
  using Bytes =
      std::conditional_t<L::kLight && kScale == ScaleKind::kShared, GivenMask, PreparedMask>;
  for (int64_t j = 0; j < p.size;) {
    const int64_t stop = min64(p.size, j + between);
    for_groups<kMasked, Bytes>(
        v, j, stop, p.size,
        [&](int64_t at, int64_t n) __attribute__((always_inline)) {
          of.take(at, n);
          if constexpr (kOfElement) constants = v.constants(at);
        },
        push,
        [&](int64_t at, int64_t first, int64_t n) __attribute__((always_inline)) {
          if constexpr (kDerivative) made.leave(at, first, n);
        });
    j = stop;
    if (j < p.size) lanes.fold();
  }
  if constexpr (kMasked && L::kHasLogScale) return static_cast<A>(lanes.finish());
  const double log_scale = L::kHasLogScale && kScale == ScaleKind::kShared ? *p.log_scale : 0.0;
  return static_cast<A>(lanes.finish() + L::row_constant(p.size, log_scale));
}

// Σ of what the rows of an example have in common, made when rows come to another example.
template <class L, class T, ScaleKind kScale, bool kMasked>
struct DataTerm {
  using A = accumulate_t<T>;
  // The constants of a shared scale are summed here where it is done for many rows at once: for few
  // a pass costs more than one number more an element.
  DVAE_HD static bool has_constants(const DecoderParams& p) {
    return kSumsConstants<L, kScale, kMasked> && p.samples >= 16;
  }

  int64_t n = -1;
  A value = 0;

  DVAE_HD A of(const DecoderParams& p, const RowView<T>& v, int64_t row) {
    if constexpr (kWanted) {
      if (row / p.samples != n) {
        n = row / p.samples;
        value = sum(p, v);
      }
    }
    return value;
  }

 private:
  // Whether it is what row_constant is of the elements observed.
  static constexpr bool kCounts = kMasked && L::kHasLogScale && kScale == ScaleKind::kFull;
  static constexpr bool kSums = kSumsConstants<L, kScale, kMasked>;
  static constexpr bool kWanted = L::kHasDataTerm || kCounts || kSums;
  // Where each row has scales of its own, it is made of x alone.
  static constexpr ScaleKind kRead = kScale == ScaleKind::kFull ? ScaleKind::kNone : kScale;

  DVAE_HD static A sum(const DecoderParams& p, const RowView<T>& v) {
    if constexpr (kCounts) {
      return static_cast<A>(L::row_constant(count_observed(v.seen, p.size), 0.0));
    }
    double total = 0;
    if constexpr (L::kHasDataTerm) {
      Scales<T, kRead> scales(v);
      total += sum(
          p, v, [&](int64_t j, int64_t n) __attribute__((always_inline)) { scales.take(j, n); },
          [&](int64_t j, int64_t i) __attribute__((always_inline)) {
            return L::template data_term<kScale>(scales.of(j, i), v.x[j + i]);
          });
    }
    if constexpr (kSums) {
      if (has_constants(p)) total -= constants(p, v);
    }
    return static_cast<A>(total);
  }
  DVAE_HD static double constants(const DecoderParams& p, const RowView<T>& v) {
    if (p.scale_stride == 0) {
      const auto count = static_cast<double>(count_observed(v.seen, p.size));
      return count == 0 ? 0 : count * static_cast<double>(v.row_constants[0]);
    }
    return sum(p, v, Nothing{}, [&](int64_t j, int64_t i) __attribute__((always_inline)) {
      return v.constants(j)[i];
    });
  }
  // Σ of element(j, i) over what is observed, after take(j, n).
  template <class F, class G>
  DVAE_HD static double sum(const DecoderParams& p, const RowView<T>& v, const F& take,
                            const G& element) {
    double total = 0;
    for (int64_t j = 0; j < p.size;) {
      const int64_t stop = min64(p.size, j + 16 * kLanes);
      alignas(64) A lanes[kLanes] = {};
      const auto add = [&](int64_t at, int64_t i, auto keep, bool) __attribute__((always_inline)) {
        lanes[i] = lanes[i] + keep(element(at, i));
      };
      for_groups<kMasked>(v, j, stop, p.size, take, add, Nothing{});
      j = stop;
      total += static_cast<double>(sum_lanes(lanes));
    }
    return total;
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
        Scales<T, kScale> scales(v);
        alignas(64) A d[kLanes];
        for_groups<kMasked>(
            v, 0, p.size, p.size,
            [&](int64_t j, int64_t n) __attribute__((always_inline)) { scales.take(j, n); },
            [&](int64_t j, int64_t i, auto keep, bool) __attribute__((always_inline)) {
              d[i] = keep(L::data_derivative(scales.of(j, i), v.x[j + i]));
            },
            [&](int64_t j, int64_t i, int64_t n) {
              DVAE_SHORT_LOOP for (; i < n; ++i) {
                scale_sum[j + i] += weight * static_cast<double>(d[i]);
              }
            });
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
  Operands<T, kScale, kBias> of(v);
  Made<T> made(out), made_scale(out_scale);
  alignas(64) A d_scale[kLanes];
  for_groups<kMasked>(
      v, 0, p.size, p.size,
      [&](int64_t j, int64_t n) __attribute__((always_inline)) { of.take(j, n); },
      [&](int64_t j, int64_t i, auto keep, bool fresh) __attribute__((always_inline)) {
        const A param = of.param(j, i), x = v.x[j + i];
        A d_param;
        if constexpr (L::kHasScale) {
          L::template derivative<kScale>(param, of.scale(j, i), x, d_param, d_scale[i]);
          d_scale[i] = keep(weight * d_scale[i]);
          if constexpr (kScale == ScaleKind::kFull) made_scale.put(j, i, d_scale[i], fresh);
        } else {
          d_param = L::derivative(param, x);
        }
        made.put(j, i, keep(weight * d_param), fresh);
      },
      [&](int64_t j, int64_t i, int64_t n) __attribute__((always_inline)) {
        made.leave(j, i, n);
        if constexpr (kScale == ScaleKind::kFull) {
          made_scale.leave(j, i, n);
        } else if (kScale == ScaleKind::kShared && scale_sum != nullptr) {
          DVAE_SHORT_LOOP for (; i < n; ++i) scale_sum[j + i] += static_cast<double>(d_scale[i]);
        }
      });
}

template <class T>
DVAE_HD accumulate_t<T> ratio_of(const LogWeightParams& p, int64_t row) {
  using A = accumulate_t<T>;
  return p.log_ratio != nullptr ? *at<A>(p.log_ratio, row) : A(0);
}
