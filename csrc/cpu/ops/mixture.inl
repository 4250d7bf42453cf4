// log p(z) less the log-density of a mixture of posteriors, and its gradient.
// Part of kernels.inl.

// Working memory of one call, aligned for vectors. One a call: between two a failure would have to
// free the first, which takes exception tables with symbols outside the ISA's namespace.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t n)
      : data_(static_cast<A*>(::operator new(static_cast<size_t>(n) * sizeof(A), kAlign))) {}
  ~Scratch() { ::operator delete(data_, kAlign); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* at(int64_t i) const { return data_ + i; }

 private:
  static constexpr std::align_val_t kAlign{64};
  A* data_;
};

DVAE_HD int64_t whole_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// A row of n elements as `width` of them, whole groups of lanes; 0 past the end.
template <class T>
DVAE_HD void read_row(const T* from, int64_t n, int64_t width, accumulate_t<T>* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
  fill(to + n, width - n, accumulate_t<T>(0));
}

// Σ term(v) over a row of whole groups of lanes.
template <class A, class F>
DVAE_HD A sum_row(const A* v, int64_t width, const F& term) {
  alignas(64) A sum[kLanes] = {};
  for (int64_t j = 0; j < width; j += kLanes) {
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) sum[i] = sum[i] + term(v[j + i]);
  }
  return sum_lanes(sum);
}

// The M components of one example, in rows of `width`: past the end ε is 0.
template <class T>
struct Components {
  using A = accumulate_t<T>;
  const int64_t count, width;
  A *const mean, *const inverse_std, *const log_var;  // log_var: the sum over dimensions
  int64_t example = -1;

  static DVAE_HD int64_t row_width(const MixtureParams& p) { return whole_lanes(p.size); }
  static DVAE_HD int64_t elements(const MixtureParams& p) {
    return 2 * p.components * row_width(p) + whole_lanes(p.components);
  }
  // In `elements` of memory.
  DVAE_HD Components(const MixtureParams& p, A* memory)
      : count(p.components),
        width(row_width(p)),
        mean(memory),
        inverse_std(memory + count * width),
        log_var(memory + 2 * count * width) {}

  DVAE_HD void read(const MixtureParams& p, int64_t of_example) {
    if (of_example == example) return;
    example = of_example;
    for (int64_t m = 0; m < count; ++m) {
      const int64_t from = (m * p.examples + example) * p.size, to = m * width;
      read_row(at<T>(p.mean, from), p.size, width, mean + to);
      A* const power = inverse_std + to;
      read_row(at<T>(p.log_var, from), p.size, width, power);
      log_var[m] = sum_row(power, width, [](A v) { return v; });
      for (int64_t i = 0; i < p.size; ++i) power[i] = exp(A(-0.5) * power[i]);
    }
  }
};

template <class T>
void mixture_log_ratio(const MixtureParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const int64_t elements = Components<T>::elements(p);
  const Scratch<A> scratch(Components<T>::row_width(p) + elements);
  Components<T> c(p, scratch.at(0));
  A* const z = scratch.at(elements);
  for (int64_t r = begin; r < end; ++r) {
    c.read(p, r / p.samples);
    read_row(at<T>(p.z, r * p.size), p.size, c.width, z);
    const A z_squares = sum_row(z, c.width, [](A v) { return v * v; });
    A* w = at<A>(p.weights, r * c.count);
    for (int64_t m = 0; m < c.count; ++m) {
      const A* mean = c.mean + m * c.width;
      const A* inverse_std = c.inverse_std + m * c.width;
      alignas(64) A squares[kLanes] = {};
      for (int64_t j = 0; j < c.width; j += kLanes) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) {
          const A e = DiagonalNormal::standardise(z[j + i], mean[j + i], inverse_std[j + i]);
          squares[i] = squares[i] + e * e;
        }
      }
      w[m] = -DiagonalNormal::log_ratio_of_sums(sum_lanes(squares), c.log_var[m], z_squares);
    }
    const MaxSum<A> s = max_and_sum<A, true>(w, c.count, w);
    *at<A>(p.log_ratio, r) = -bound_of(s, c.count);
    const A inverse = inverse_of(s);
    for (int64_t m = 0; m < c.count; ++m) w[m] = w[m] * inverse;
  }
}

template <class T>
void mixture_log_ratio_backward(const MixtureParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  // Of each component Σ g ε, Σ g ε² and Σ g over samples, in two levels.
  const int64_t n = p.components * Components<T>::row_width(p), sums = 2 * n + p.components;
  const int64_t elements = Components<T>::elements(p);
  const Scratch<A> scratch(2 * sums + p.components + Components<T>::row_width(p) + elements);
  Components<T> c(p, scratch.at(0));
  A *const z = scratch.at(elements), *const noise = z + c.width, *const squares = noise + n;
  A *const grads = squares + n, *const total = noise + sums, *const g = total + sums;
  for (int64_t example = begin; example < end; ++example) {
    c.read(p, example);
    fill(noise, 2 * sums, A(0));
    for (int64_t k = 0; k < p.samples; ++k) {
      const int64_t r = example * p.samples + k;
      const A grad = *at<A>(p.grad, r);
      const A* w = at<A>(static_cast<const void*>(p.weights), r * c.count);
      read_row(at<T>(p.z, r * p.size), p.size, c.width, z);
      A sum_g = 0;
      for (int64_t first = 0; first < c.count; first += kSumRows) {
        A part = 0;
        for (int64_t m = first; m < min64(first + kSumRows, c.count); ++m) {
          g[m] = grad * w[m];
          grads[m] = grads[m] + g[m];
          part = part + g[m];
        }
        sum_g = sum_g + part;
      }
      T* out = at<T>(p.grad_z, r * p.size);
      for (int64_t j = 0; j < c.width; j += kLanes) {
        alignas(64) A total_z[kLanes] = {};
        for (int64_t first = 0; first < c.count; first += kSumRows) {
          alignas(64) A d_z[kLanes] = {};
          const int64_t last = min64(first + kSumRows, c.count);
          for (int64_t m = first; m < last; ++m) {
            const A weight = g[m];
            // A weight of 0 stops a non-finite derivative: 0 · inf would be NaN.
            if (weight == A(0)) continue;
            const int64_t from = m * c.width + j;
            const A *const mean = c.mean + from, *const inverse_std = c.inverse_std + from;
            A *const sum = noise + from, *const sum_squares = squares + from;
#pragma GCC ivdep
            for (int i = 0; i < kLanes; ++i) {
              d_z[i] =
                  d_z[i] + DiagonalNormal::accumulate_component(
                               weight, z[j + i], mean[i], inverse_std[i], sum[i], sum_squares[i]);
            }
          }
          for (int i = 0; i < kLanes; ++i) total_z[i] = total_z[i] + d_z[i];
        }
        const int64_t stop = min64(kLanes, p.size - j);
        for (int64_t i = 0; i < stop; ++i) store(out[j + i], total_z[i] - z[j + i] * sum_g);
      }
      if ((k + 1) % kSumRows == 0) fold(noise, total, sums);
    }
    fold(noise, total, sums);
    for (int64_t m = 0; m < c.count; ++m) {
      const int64_t to = (m * p.examples + example) * p.size, from = m * c.width;
      T* d_mean = at<T>(p.grad_mean, to);
      T* d_log_var = at<T>(p.grad_log_var, to);
      for (int64_t i = 0; i < p.size; ++i) {
        store(d_mean[i],
              DiagonalNormal::component_mean_gradient(total[from + i], c.inverse_std[from + i]));
        store(d_log_var[i],
              DiagonalNormal::component_log_var_gradient(total[2 * n + m], total[n + from + i]));
      }
    }
  }
}
