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
