// In place: a gradient times a factor, and sums over rows.
// Part of kernels.inl.

template <class T>
void scale_by(void* grad, double factor, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  T* g = static_cast<T*>(grad);
  const A f = static_cast<A>(factor);
  for (int64_t i = begin; i < end; ++i) store(g[i], f * load(g[i]));
}

template <class T>
void add_column_sums(const void* in, int64_t rows, int64_t columns, double* out, int64_t begin,
                     int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t j = begin; j < end; j += kTile) {
    const int64_t n = min64(kTile, end - j);
    for (int64_t first = 0; first < rows; first += kSumRows) {
      alignas(64) A sum[kBlock] = {};
      for (int64_t r = first; r < min64(first + kSumRows, rows); ++r) {
        const T* row = at<T>(in, r * columns + j);
        for (int64_t i = 0; i < n; ++i) sum[i] = sum[i] + load(row[i]);
      }
      for (int64_t i = 0; i < n; ++i) out[j + i] += static_cast<double>(sum[i]);
    }
  }
}

template <class T>
void add_to(const void* from, void* to, int64_t n) {
  const T* in = static_cast<const T*>(from);
  T* out = static_cast<T*>(to);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = out[i] + in[i];
}
