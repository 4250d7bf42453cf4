// What the kernels of every operator are made of: lanes, their sums, and typed access.
// Part of kernels.inl.

DVAE_HD int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
DVAE_HD const T* at(const void* base, int64_t offset) {
  return static_cast<const T*>(base) + offset;
}
template <class T>
DVAE_HD T* at(void* base, int64_t offset) {
  return static_cast<T*>(base) + offset;
}

template <class A>
DVAE_HD void fill(A* p, int64_t n, A value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

// total += part, which starts again.
template <class A>
DVAE_HD void fold(A* part, A* total, int64_t n) {
  for (int64_t i = 0; i < n; ++i) total[i] = total[i] + part[i];
  fill(part, n, A(0));
}

// body(i, lane) for i in [0, n): whole groups of 16 lanes with a constant trip count, then the
// rest. The lanes are independent, so the compiler vectorises each group.
template <class F>
DVAE_HD void for_lanes(int64_t n, const F& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) body(i + lane, lane);
  }
  for (int lane = 0; lane < n - i; ++lane) body(i + lane, lane);
}

// The sum of 16 accumulators, in a fixed tree. Every width is a constant: as a loop over widths GCC
// 12 leaves the branches in, 20 ns a sum and not 5.
template <int kWidth = kLanes / 2, class A>
DVAE_HD A sum_lanes(A* v) {
  for (int i = 0; i < kWidth; ++i) v[i] = v[i] + v[i + kWidth];
  if constexpr (kWidth > 1) return sum_lanes<kWidth / 2>(v);
  return v[0];
}
