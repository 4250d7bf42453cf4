// Softplus and its gradient.
// Part of kernels.inl.

template <class T>
void softplus_forward(const void* in, void* out, int64_t begin, int64_t end) {
  const T* from = static_cast<const T*>(in);
  T* to = static_cast<T*>(out);
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) store(to[i], softplus(load(from[i])));
}

template <class T>
void softplus_backward(const void* grad, const void* out, void* to, int64_t begin, int64_t end) {
  const T* g = static_cast<const T*>(grad);
  const T* y = static_cast<const T*>(out);
  T* d = static_cast<T*>(to);
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) store(d[i], load(g[i]) * one_minus_exp(load(y[i])));
}
