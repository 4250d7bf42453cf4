// Variables of C classes, one-hot: log-weights of rows, and their gradient.
// Part of kernels.inl.

// How a row's numbers come into groups of lanes. Of few classes a lane is a variable: the C of
// each, side by side in memory, become C vectors of a group of kLanes variables. Of many a lane is
// a class, and a group a variable.
template <bool kMany>
struct ClassLayout {
  int64_t classes, variables, groups, vectors;

  explicit ClassLayout(const CategoricalParams& p)
      : classes(p.classes),
        variables(p.size / p.classes),
        groups(kMany ? variables : (variables + kLanes - 1) / kLanes),
        vectors(kMany ? (classes + kLanes - 1) / kLanes : classes) {}
  int64_t size() const { return vectors * kLanes; }  // of a group
  DVAE_HD int64_t first(int64_t g) const { return g * (kMany ? 1 : kLanes) * classes; }

  // Group g of a row into lanes, 0 where it is not known. Lanes of no class are `rest`.
  template <class T>
  DVAE_HD void take(const T* row, const uint8_t* seen, int64_t g, T rest, T* to) const {
    const T* from = row + first(g);
    if constexpr (kMany) {
      const bool known = is_known(seen, first(g));
      for (int64_t c = 0; c < classes; ++c) to[c] = known ? from[c] : T(0);
      for (int64_t c = classes; c < size(); ++c) to[c] = rest;
    } else {
      if (count(g) < kLanes) fill(to, size(), T(0));
      each(seen, g, [&](int64_t at, int64_t lane, bool known) __attribute__((always_inline)) {
        to[lane] = known ? from[at] : T(0);
      });
    }
  }
  // And back.
  template <class T>
  DVAE_HD void give(const T* from, const uint8_t* seen, int64_t g, T* row) const {
    T* to = row + first(g);
    if constexpr (kMany) {
      const bool known = is_known(seen, first(g));
      for (int64_t c = 0; c < classes; ++c) to[c] = known ? from[c] : T(0);
    } else {
      each(seen, g, [&](int64_t at, int64_t lane, bool known) __attribute__((always_inline)) {
        to[at] = known ? from[lane] : T(0);
      });
    }
  }

 private:
  DVAE_HD int64_t count(int64_t g) const { return min64(kLanes, variables - g * kLanes); }
  DVAE_HD static bool is_known(const uint8_t* seen, int64_t at) {
    return seen == nullptr || seen[at] != 0;
  }
  template <class F>
  DVAE_HD void each(const uint8_t* seen, int64_t g, const F& body) const {
    for (int64_t i = 0; i < count(g); ++i) {
      const bool known = is_known(seen, first(g) + i * classes);
      for (int64_t c = 0; c < classes; ++c) {
        DVAE_ONE_BY_ONE;
        body(i * classes + c, c * kLanes + i, known);
      }
    }
  }
};

// What is made of a group.
template <class T, bool kMany>
struct ClassSums {
  // In each of its lanes: the largest logit, Σ e^(l − that), Σ x, and Σ x (l − that).
  alignas(64) T most[kLanes], sum[kLanes], observed[kLanes], inner[kLanes];

  // Leaves e^(l − the largest) in logits.
  DVAE_HD void of(const T* x, T* logits, int64_t vectors) {
    for (int i = 0; i < kLanes; ++i) most[i] = logits[i];
    for (int64_t v = 1; v < vectors; ++v) {
      const T* l = logits + v * kLanes;
      DVAE_SHORT_LOOP for (int i = 0; i < kLanes; ++i) most[i] = l[i] > most[i] ? l[i] : most[i];
    }
    if constexpr (kMany) {
      T all = most[0];
      for (int i = 1; i < kLanes; ++i) all = most[i] > all ? most[i] : all;
      fill(most, kLanes, all);
    }
    fill(sum, kLanes, T(0));
    fill(observed, kLanes, T(0));
    fill(inner, kLanes, T(0));
    for (int64_t v = 0; v < vectors; ++v) {
      T* l = logits + v * kLanes;
      const T* data = x + v * kLanes;
      DVAE_SHORT_LOOP for (int i = 0; i < kLanes; ++i) {
        const T d = l[i] - most[i];
        const T part = data[i] * d;
        inner[i] = inner[i] + (data[i] == T(0) ? T(0) : part);
        observed[i] = observed[i] + data[i];
        l[i] = exp_nonpositive(d);
        sum[i] = sum[i] + l[i];
      }
    }
    if constexpr (kMany) {
      to_all(sum);
      to_all(observed);
      to_all(inner);
    }
  }

 private:
  // Each becomes the sum of all.
  DVAE_HD static void to_all(T* lanes) {
    const T all = sum_lanes(lanes);
    fill(lanes, kLanes, all);
  }
};

// A row's logits group by group, with the x of its example, which comes into lanes once.
template <class T, bool kMany>
struct ClassRows {
  const CategoricalParams& p;
  const ClassLayout<kMany> layout;
  T* x;       // of all groups
  T* logits;  // of one
  ClassSums<T, kMany> sums;
  int64_t n = -1;
  const uint8_t* seen = nullptr;

  explicit ClassRows(const CategoricalParams& params)
      : p(params),
        layout(p),
        x(static_cast<T*>(p.data)),
        logits(x + layout.groups * layout.size()) {}

  DVAE_HD void come_to(int64_t row) {
    if (row / p.samples == n) return;
    n = row / p.samples;
    if (p.seen != nullptr) seen = p.seen + n % p.seen_examples * p.size;
    const T* given = at<T>(p.x, n % p.examples * p.size);
    for (int64_t g = 0; g < layout.groups; ++g) layout.take(given, seen, g, T(0), x_of(g));
  }
  DVAE_HD void take(int64_t row, int64_t g) {
    layout.take(at<T>(p.params, row * p.size), seen, g, -infinity<T>(), logits);
    sums.of(x_of(g), logits, layout.vectors);
  }
  DVAE_HD T* x_of(int64_t g) const { return x + g * layout.size(); }
};

template <bool kMany, class T>
void categorical_as(const CategoricalParams& p, int64_t begin, int64_t end) {
  constexpr int kOwn = kMany ? 1 : kLanes;  // lanes that differ
  ClassRows<T, kMany> of(p);
  const ClassSums<T, kMany>& sums = of.sums;
  alignas(64) T lanes[kLanes] = {};
  for (int64_t row = begin; row < end; ++row) {
    of.come_to(row);
    double total = 0;
    for (int64_t g = 0; g < of.layout.groups;) {
      const int64_t stop = min64(of.layout.groups, g + 16);
      fill(lanes, kLanes, T(0));
      for (; g < stop; ++g) {
        of.take(row, g);
        DVAE_SHORT_LOOP for (int i = 0; i < kOwn; ++i) {
          const T normaliser = sums.observed[i] * log(sums.sum[i]);
          // Of no class nothing follows, whatever the logits.
          lanes[i] = lanes[i] + (sums.observed[i] == T(0) ? T(0) : sums.inner[i] - normaliser);
        }
      }
      total += static_cast<double>(sum_lanes(lanes));
    }
    *at<T>(p.log_w, row) = *at<T>(p.log_ratio, row) + static_cast<T>(total);
  }
}

// weight (x − Σx softmax l)
template <bool kMany, class T>
void categorical_backward_as(const CategoricalParams& p, int64_t begin, int64_t end) {
  ClassRows<T, kMany> of(p);
  alignas(64) T share[kLanes];
  for (int64_t row = begin; row < end; ++row) {
    T* to = at<T>(p.grad_params, row * p.size);
    const T weight = *at<T>(p.grad, row);
    if (weight == T(0)) {
      // A weight of 0 stops a non-finite derivative: 0 · inf would be NaN.
      fill(to, p.size, T(0));
      continue;
    }
    of.come_to(row);
    for (int64_t g = 0; g < of.layout.groups; ++g) {
      of.take(row, g);
      for (int i = 0; i < kLanes; ++i) share[i] = of.sums.observed[i] / of.sums.sum[i];
      for (int64_t v = 0; v < of.layout.vectors; ++v) {
        T* l = of.logits + v * kLanes;
        const T* x = of.x_of(g) + v * kLanes;
        DVAE_SHORT_LOOP for (int i = 0; i < kLanes; ++i) {
          l[i] = weight * (x[i] - share[i] * l[i]);
        }
      }
      of.layout.give(of.logits, of.seen, g, to);
    }
  }
}

template <class T>
void categorical(const CategoricalParams& p, int64_t begin, int64_t end) {
  (p.classes < kManyClasses ? categorical_as<false, T> : categorical_as<true, T>)(p, begin, end);
}
template <class T>
void categorical_backward(const CategoricalParams& p, int64_t begin, int64_t end) {
  (p.classes < kManyClasses ? categorical_backward_as<false, T>
                            : categorical_backward_as<true, T>)(p, begin, end);
}
