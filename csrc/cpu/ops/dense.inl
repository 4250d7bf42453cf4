// A dense layer of packed panels, and the packing.
// Part of kernels.inl.

// f(in Wᵀ + b); the non-linearity while the rows are still in cache.
template <class T>
void dense(const DenseParams& p) {
  T* out = static_cast<T*>(p.out);
  multiply_panels(static_cast<const T*>(p.in), static_cast<const T*>(p.panels), p.rows, p.inputs,
                  p.outputs, out);
  const int64_t n = p.rows * p.outputs;
  const auto each = [&](auto f) __attribute__((always_inline)) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) out[i] = f(out[i]);
  };
  switch (p.activation) {
    case Activation::kNone:
      break;
    case Activation::kSoftplus:
      return each([](T x) __attribute__((always_inline)) { return softplus(x); });
    case Activation::kRelu:
      return each([](T x) __attribute__((always_inline)) { return x < T(0) ? T(0) : x; });
    case Activation::kTanh:
      return each([](T x) __attribute__((always_inline)) { return tanh(x); });
  }
}

template <class T>
void pack_panels(const void* weight, const void* bias, int64_t inputs, int64_t outputs,
                 void* panels) {
  pack(static_cast<const T*>(weight), static_cast<const T*>(bias), inputs, outputs,
       static_cast<T*>(panels));
}

template <class T>
void pack_transposed_panels(const void* weight, int64_t stride, int64_t inputs, int64_t outputs,
                            void* panels) {
  pack_transposed(static_cast<const T*>(weight), stride, inputs, outputs, static_cast<T*>(panels));
}

template <class T>
void add_outer(const OuterParams& p) {
  add_outer_panels(static_cast<const T*>(p.left), p.left_stride, static_cast<const T*>(p.right),
                   p.rows, p.outputs, p.inputs, p.first, static_cast<T*>(p.to));
}

// grad *= f'(a), of what f made of a. What is not above 0 stops a ReLU's gradient whatever it is,
// and a NaN does not, as torch has it.
template <class T>
void activation_backward(Activation f, void* grad, const void* made, int64_t n) {
  T* g = static_cast<T*>(grad);
  const T* y = static_cast<const T*>(made);
  const auto each = [&](auto pulled) __attribute__((always_inline)) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) g[i] = pulled(g[i], y[i]);
  };
  switch (f) {
    case Activation::kNone:
      break;
    case Activation::kSoftplus:
      return each([](T d, T v) __attribute__((always_inline)) { return d * one_minus_exp(v); });
    case Activation::kRelu:
      return each([](T d, T v) __attribute__((always_inline)) { return v <= T(0) ? T(0) : d; });
    case Activation::kTanh:
      return each([](T d, T v) __attribute__((always_inline)) { return d * (T(1) - v * v); });
  }
}

// −KL(N(mean, e^log_var) || N(0, 1)) of each row, and its gradient times grad, added.
template <class T>
void divergence(const LatentParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* mean = at<T>(p.mean, row * p.size);
    const T* log_var = at<T>(p.log_var, row * p.size);
    alignas(64) T sum[kLanes] = {};
    for_lanes(p.size, [&](int64_t i, int lane) __attribute__((always_inline)) {
      sum[lane] = sum[lane] + DiagonalNormal::minus_divergence(mean[i], log_var[i]);
    });
    *at<T>(p.log_ratio, row) = sum_lanes(sum);
  }
}
template <class T>
void divergence_backward(const LatentParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T grad = *at<T>(p.grad_log_ratio, row);
    const T* mean = at<T>(p.mean, row * p.size);
    const T* log_var = at<T>(p.log_var, row * p.size);
    T* d_mean = at<T>(p.grad_mean, row * p.size);
    T* d_log_var = at<T>(p.grad_log_var, row * p.size);
    for (int64_t i = 0; i < p.size; ++i) {
      DiagonalNormal::add_divergence_gradient(grad, mean[i], log_var[i], d_mean[i], d_log_var[i]);
    }
  }
}
